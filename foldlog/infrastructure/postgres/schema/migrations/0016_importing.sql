-- `GET /readyz` and `foldlog status` ask for unfinished imports.
CREATE INDEX spaces_importing ON spaces (space) WHERE importing;
