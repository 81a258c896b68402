"""The service's role can read the log and append to it, and has only the privileges it needs.

All other tests on PostgreSQL prove that the privileges are sufficient, because their stores use the
same role; see `datastore` in tests/conftest.py.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import structlog
from click.testing import CliRunner
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import StorageUnavailable
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.schema.grants import (
    FUNCTIONS,
    PRIVILEGES,
    VACUUMED,
    UnfitRole,
    grant,
    regrant,
)
from foldlog.infrastructure.postgres.schema.migrate import SchemaBehind, migrate
from foldlog.infrastructure.postgres.service_events.erasure import vacuum
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database as open_database
from foldlog.scripts.main import cli
from tests.conftest import PostgresStores, as_service, create_database
from tests.helpers import changeset, push_of, put

OTHER_ROLE = "test_other_role"
#: all privileges of the service's role, as a database of the current schema has them
GOLDEN = Path(__file__).parent / "grants.txt"


@pytest.fixture(scope="module")
def service(cluster):
    """The service's URL of a database with a log."""
    url = as_service(cluster, create_database(cluster)[0])
    with Datastore(url) as datastore:
        stores = PostgresStores(datastore)
        stores.push("s", push_of(changeset(put("r", x=1)), changeset(put("r", x=2))))
        stores.project()
        stores.grow_trees()
    return url


@pytest.fixture
def lines():
    """The captured log lines."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def other_role(database_urls):
    """A role without privileges, as an operator creates it on another server."""
    with psycopg.connect(database_urls[1], autocommit=True) as conn:
        conn.execute(SQL("DROP ROLE IF EXISTS {}").format(Identifier(OTHER_ROLE)))
        conn.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(Identifier(OTHER_ROLE)))
        yield database_urls
        conn.execute(SQL("DROP OWNED BY {}").format(Identifier(OTHER_ROLE)))
        conn.execute(SQL("DROP ROLE {}").format(Identifier(OTHER_ROLE)))


#: These statements take a database back to the schema before the migration.
UNDO_0014 = [
    "DROP FUNCTION pass_granted_token_alone CASCADE",
    "DROP FUNCTION refuse_access, keep_events_below_head CASCADE",
    "DROP INDEX projections_alarms, checkpoints_alarms",
    "ALTER TABLE projections DROP COLUMN failing_why, DROP COLUMN failing_since",
]

SELECT_GRANTS = """
SELECT c.relname, acl.privilege_type
  FROM pg_class c
 CROSS JOIN aclexplode(c.relacl) acl
 WHERE c.relnamespace = 'public'::regnamespace
   AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND acl.grantee IN (0, %(role)s::regrole)
 UNION ALL
SELECT c.relname || '.' || a.attname, acl.privilege_type
  FROM pg_class c
  JOIN pg_attribute a
    ON a.attrelid = c.oid
 CROSS JOIN aclexplode(a.attacl) acl
 WHERE c.relnamespace = 'public'::regnamespace
   AND acl.grantee IN (0, %(role)s::regrole)
 UNION ALL
SELECT p.proname || '()', acl.privilege_type
  FROM pg_proc p
 CROSS JOIN aclexplode(p.proacl) acl
 WHERE p.pronamespace = 'public'::regnamespace
   AND acl.grantee IN (0, %(role)s::regrole)
"""


def grants(url: str, role: str = SERVICE_ROLE) -> dict[str, set[str]]:
    """Returns {table, table.column or function(): privileges of the role} from the catalogue.

    The privileges of PUBLIC count as well.
    """
    found: dict[str, set[str]] = {}
    with psycopg.connect(url) as conn:
        for name, privilege in conn.execute(SELECT_GRANTS, {"role": role}):
            found.setdefault(name, set()).add(privilege)
    return found


def test_the_grants_are_those_of_the_golden_list(database):
    """A new table, column or privilege needs a line in the list, and so a decision.

    MAINTAIN, which changes no row, exists from PostgreSQL 17 on.
    """
    found = grants(database)
    lines = [f"{name}: {', '.join(sorted(found[name]))}" for name in sorted(found)]
    assert "\n".join(lines) == GOLDEN.read_text("utf-8").strip()
    assert {name for name in found if "MAINTAIN" in found[name]} == set(VACUUMED)
    assert set(PRIVILEGES) == {name for name in found if "." not in name and "(" not in name}


def columns(url: str) -> dict[str, list[str]]:
    """Returns {table: its columns} of the whole schema."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(url) as conn:
        for table, column in conn.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
        ):
            found.setdefault(table, []).append(column)
    return found


def refused(cursor, statement) -> bool:
    """Tells whether the database refuses a statement for want of a privilege. Nothing is kept."""
    try:
        with cursor.connection.transaction(force_rollback=True):
            cursor.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return True
    except psycopg.Error:
        return False  # allowed, but wrong data
    return False


def test_all_other_writes_are_refused(service, database):
    """For each table and column of the catalogue, as the service's role.

    What it may do stands in the golden list alone, so this also tests the list.
    """
    allowed = {}
    for line in GOLDEN.read_text("utf-8").splitlines():
        name, _, privileges = line.partition(": ")
        allowed[name] = set(privileges.split(", "))
    tried = 0
    with psycopg.connect(service, autocommit=True) as conn, conn.cursor() as cursor:
        for table, names in columns(service_owner(database, service)).items():
            on = Identifier(table)
            of_table = allowed.get(table, set())
            whole = {
                "DELETE": SQL("DELETE FROM {} WHERE false").format(on),
                "TRUNCATE": SQL("TRUNCATE {}").format(on),
                "TRIGGER": SQL(
                    "CREATE TRIGGER t AFTER INSERT ON {} EXECUTE FUNCTION refuse_change()"
                ).format(on),
                "REFERENCES": SQL("ALTER TABLE {} ADD COLUMN x int").format(on),
            }
            for privilege, statement in whole.items():
                tried += 1
                assert refused(cursor, statement) is (privilege not in of_table), (table, privilege)
            for name in names:
                column = Identifier(name)
                of_column = of_table | allowed.get(f"{table}.{name}", set())
                for privilege, statement in {
                    "UPDATE": SQL("UPDATE {} SET {} = NULL WHERE false").format(on, column),
                    "INSERT": SQL("INSERT INTO {} ({}) SELECT NULL WHERE false").format(on, column),
                }.items():
                    tried += 1
                    is_allowed = privilege in of_column
                    assert refused(cursor, statement) is not is_allowed, (table, name, privilege)
    assert tried > 300


def service_owner(database: str, service: str) -> str:
    """The owner's URL of the database of `service`."""
    name = psycopg.conninfo.conninfo_to_dict(service)["dbname"]
    return psycopg.conninfo.make_conninfo(database, dbname=name)


def test_every_function_of_the_owner_is_listed(database):
    """A SECURITY DEFINER function could bypass all privileges. There is exactly one."""
    with psycopg.connect(database) as conn:
        found = conn.execute(
            "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert tuple(name for (name,) in found) == FUNCTIONS


REFUSED = [
    "UPDATE events SET state = state",
    "UPDATE events SET state = state WHERE false",
    "UPDATE events SET salt = ''",
    "DELETE FROM events",
    "DELETE FROM events WHERE false",
    "TRUNCATE events",
    "TRUNCATE spaces CASCADE",
    "MERGE INTO events e USING spaces s ON s.space = e.originator_id WHEN MATCHED THEN DELETE",
    "INSERT INTO events SELECT * FROM events "
    "ON CONFLICT (originator_id, originator_version) DO UPDATE SET state = ''",
    "SELECT * FROM events FOR UPDATE",
    "DROP TABLE events",
    "DROP TABLE records",
    "DROP TRIGGER events_are_append_only ON events",
    "DROP FUNCTION erase_operations",
    "DROP SCHEMA public CASCADE",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "ALTER TABLE events DISABLE TRIGGER events_change_by_erasure",
    "ALTER TABLE events OWNER TO CURRENT_USER",
    "ALTER TABLE events DROP COLUMN salt",
    "ALTER TABLE spaces ADD COLUMN x int",
    "ALTER FUNCTION erase_operations SECURITY INVOKER",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN RETURN OLD; END'",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TRIGGER t BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE RULE r AS ON INSERT TO events DO INSTEAD NOTHING",
    "CREATE INDEX i ON events (topic)",
    "CREATE TABLE t (x int)",
    "CREATE TEMP TABLE events (x int)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE SCHEMA x",
    "CREATE ROLE x",
    "CREATE DATABASE x",
    "GRANT foldlog TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE foldlog PASSWORD 'x'",
    "ALTER DEFAULT PRIVILEGES FOR ROLE foldlog GRANT ALL ON TABLES TO PUBLIC",
    "SET ROLE foldlog",
    "SET SESSION AUTHORIZATION foldlog",
    "SET session_replication_role = replica",
    "SELECT set_config('session_replication_role', 'replica', false)",
    "DELETE FROM spaces",
    "DELETE FROM devices",
    "DELETE FROM erasures",
    "DELETE FROM checkpoints",
    "DELETE FROM collections",
    "UPDATE collections SET is_forced = false",
    "INSERT INTO schema_migrations (name) VALUES ('9999')",
    "DELETE FROM schema_migrations",
    "UPDATE pg_class SET relowner = 0",
    "SELECT rolpassword FROM pg_authid",
    "COPY events TO '/tmp/events'",
    "COPY events TO PROGRAM 'true'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT lo_import('/etc/passwd')",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_reload_conf()",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_the_service_may_not(service, statement):
    """An attacker with the service's password could try these statements."""
    with psycopg.connect(service, autocommit=True) as conn:
        before = conn.execute("SELECT originator_version, state, salt FROM events").fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(statement)
        after = conn.execute("SELECT originator_version, state, salt FROM events").fetchall()
    assert after == before and len(after) == 2


def test_it_cannot_grant_itself_a_privilege(service):
    """PostgreSQL answers this statement with a warning only."""
    before = grants(service)
    with psycopg.connect(service, autocommit=True) as conn:
        conn.execute("GRANT UPDATE, DELETE ON events TO CURRENT_USER")
    assert grants(service) == before


def test_the_service_vacuums_after_an_erasure(cluster, database, lines):
    """Before PostgreSQL 17 the database only warns, so the service logs an error."""
    url = as_service(cluster, database)
    vacuum(url)
    assert lines == []
    with psycopg.connect(database) as conn:
        conn.execute(SQL("REVOKE MAINTAIN ON versions FROM {}").format(Identifier(SERVICE_ROLE)))
    vacuum(url)
    (line,) = lines
    assert line["log_level"] == "error" and "versions" in str(line["refused"])


def test_the_role_has_no_attributes_or_memberships(cluster):
    with psycopg.connect(cluster.superuser_url) as conn:
        (strong,) = conn.execute(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls "
            "FROM pg_roles WHERE rolname = %s",
            (SERVICE_ROLE,),
        ).fetchone()
        (memberships,) = conn.execute(
            "SELECT count(*) FROM pg_auth_members WHERE member = %s::regrole", (SERVICE_ROLE,)
        ).fetchone()
    assert (strong, memberships) == (False, 0)


def migrate_command(url: str, *arguments: str, code: int = 0):
    result = CliRunner().invoke(cli, ["migrate", *arguments, "--database-url", url])
    assert result.exit_code == code, result.output
    return result


def test_another_server_grants_to_a_role_that_is_named(other_role):
    """`foldlog migrate --grant-to`, run as the owner, also revokes the role's other privileges."""
    owner, _ = other_role
    url = psycopg.conninfo.make_conninfo(owner, user=OTHER_ROLE, password="x")
    with psycopg.connect(owner) as conn:
        conn.execute(SQL("GRANT ALL ON events TO {}").format(Identifier(OTHER_ROLE)))

    done = migrate_command(owner, "--grant-to", OTHER_ROLE)

    assert f"granted to {OTHER_ROLE}" in done.output
    with Datastore(url) as datastore:
        stores = PostgresStores(datastore)
        stores.push("s", push_of(changeset(put("r", x=1))))
        stores.project()
        assert stores.erase("s", [("tasks", "r")], reason="asked to")[0].events == 1
    with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("DELETE FROM events")


def test_a_migration_replaces_the_grants_of_older_databases(other_role):
    """Older versions granted UPDATE on whole tables. The role needs no second `--grant-to`."""
    owner, _ = other_role
    grant(owner, OTHER_ROLE)
    to = Identifier(OTHER_ROLE)
    with psycopg.connect(owner) as conn:
        for table in ("tokens", "devices", "projections", "spaces"):
            conn.execute(SQL("GRANT UPDATE ON {} TO {}").format(Identifier(table), to))
    assert regrant(owner) == sorted([OTHER_ROLE, SERVICE_ROLE])
    url = psycopg.conninfo.make_conninfo(owner, user=OTHER_ROLE, password="x")
    with psycopg.connect(url, autocommit=True) as conn:
        for change in ("tokens SET role", "devices SET device", "projections SET generation"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(f"UPDATE {change} = NULL")
    assert grants(owner, OTHER_ROLE) == grants(owner)


def test_foldlog_migrate_also_replaces_the_grants(other_role):
    """Each migration may add a table, so the roles get their privileges on it at once."""
    owner, _ = other_role
    grant(owner, OTHER_ROLE)
    to = Identifier(OTHER_ROLE)
    with psycopg.connect(owner) as conn:
        conn.execute(SQL("GRANT UPDATE ON tokens TO {}").format(to))
        conn.execute("DELETE FROM schema_migrations WHERE name = '0014_roles'")
        for undo in UNDO_0014:
            conn.execute(undo)
    assert "0014_roles" in migrate_command(owner).output
    assert grants(owner, OTHER_ROLE) == grants(owner)


def test_a_role_with_more_privileges_is_refused(other_role):
    """A superuser, or a member of the owner's role, could change the log."""
    owner, superuser = other_role
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute(SQL("GRANT foldlog TO {}").format(Identifier(OTHER_ROLE)))
    with pytest.raises(UnfitRole, match="could change the log"):
        grant(owner, OTHER_ROLE)
    assert "unfit-role" in migrate_command(owner, "--grant-to", "postgres", code=3).stderr
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute(SQL("REVOKE foldlog FROM {}").format(Identifier(OTHER_ROLE)))
    assert "no role 'nobody'" in migrate_command(owner, "--grant-to", "nobody", code=3).stderr


STRONGER = [
    "ALTER ROLE {role} CREATEROLE",
    "GRANT pg_write_all_data TO {role}",
    "GRANT pg_execute_server_program TO {role}",
]
EXCESSIVE = {
    "GRANT CREATE ON DATABASE {database} TO PUBLIC": "CREATE on database",
    "GRANT CREATE ON SCHEMA public TO test_group": "CREATE on schema public",
    "GRANT TEMPORARY ON DATABASE {database} TO test_group": "TEMPORARY on database",
    "GRANT UPDATE ON tokens TO test_group": r"UPDATE \(device\) on tokens",
    "GRANT UPDATE (role) ON tokens TO test_group": r"UPDATE \(role\) on tokens",
    "GRANT DELETE ON tokens TO test_group": "DELETE on tokens",
    "GRANT INSERT ON schema_migrations TO test_group": r"INSERT \(name\) on schema_migrations",
    "GRANT TRIGGER ON events TO test_group": "TRIGGER on events",
}


@pytest.fixture
def member(other_role):
    """The owner's and the superuser's URL. The other role is a member of a group."""
    owner, superuser = other_role
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute("CREATE ROLE test_group")
        conn.execute(SQL("GRANT test_group TO {}").format(Identifier(OTHER_ROLE)))
    yield owner, superuser
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute("DROP OWNED BY test_group")
        conn.execute("DROP ROLE test_group")


@pytest.mark.parametrize("statement", STRONGER)
def test_a_role_with_a_stronger_attribute_is_refused(other_role, statement):
    """Such a role could give itself what the grants leave out."""
    owner, superuser = other_role
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute(statement.format(role=OTHER_ROLE).encode())
    with pytest.raises(UnfitRole, match="could change the log"):
        grant(owner, OTHER_ROLE)


@pytest.mark.parametrize("statement", EXCESSIVE)
def test_privileges_by_another_way_are_refused(member, statement):
    """By PUBLIC, or by a group. The error names them, and nothing is granted."""
    owner, superuser = member
    database = psycopg.conninfo.conninfo_to_dict(owner)["dbname"]
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute(statement.format(database=database).encode())
    with pytest.raises(UnfitRole, match=EXCESSIVE[statement]):
        grant(owner, OTHER_ROLE)
    assert grants(owner, OTHER_ROLE) == {}


def test_grants_to_public_are_revoked(member):
    """A default privilege of the server, or an old schema `public`, may have made them."""
    owner, _ = member
    with psycopg.connect(owner) as conn:
        conn.execute("GRANT ALL ON tokens, events, schema_migrations TO PUBLIC")
        conn.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    grant(owner, OTHER_ROLE)
    assert grants(owner, OTHER_ROLE) == grants(owner)


def test_the_service_does_not_migrate(cluster, database, monkeypatch):
    """It names the owner as the role that must migrate, before it serves any request."""
    known = {"0001_log": "", "9998_new": "CREATE TABLE t (x int)"}
    monkeypatch.setattr("foldlog.infrastructure.postgres.schema.migrate.migrations", lambda: known)
    with psycopg.connect(database) as conn:
        conn.execute("DELETE FROM schema_migrations WHERE name <> '0001_log'")
    url = as_service(cluster, database)
    with pytest.raises(SchemaBehind, match=r"9998_new.*as their owner"):
        migrate(url)
    assert migrate(database) == ["9998_new"]
    assert migrate(url) == []


def test_a_database_of_one_role_goes_on(database):
    """With the owner's URL all processes run as the owner."""
    settings = read_settings({"FOLDLOG_DATABASE_URL": database})
    with open_database(settings, migrates=True) as db:
        assert (db.url, db.owner_url) == (database, database)


def test_an_older_data_folder_gets_its_role(data_folder):
    """A folder of an older version has no service role. The next start creates it."""
    settings = read_settings({"FOLDLOG_DATA": str(data_folder)})
    with open_database(settings, migrates=True) as db:
        assert db.embedded is not None
        with psycopg.connect(db.embedded.superuser_url, autocommit=True) as conn:
            conn.execute("DROP DATABASE foldlog WITH (FORCE)")
            conn.execute(SQL("DROP ROLE {}").format(Identifier(SERVICE_ROLE)))
            conn.execute("CREATE DATABASE foldlog OWNER foldlog")
        migrate(db.owner_url)
    (data_folder / "secrets" / f"{SERVICE_ROLE}.password").unlink()

    with open_database(settings) as db, Datastore(db.url) as datastore:
        assert f"//{SERVICE_ROLE}:" in db.url
        assert PostgresStores(datastore).push("s", push_of(changeset())).head == 1


def test_a_wrong_password_stays_out_of_the_error(database):
    """Both the database's message and ours leave it out."""
    url = psycopg.conninfo.make_conninfo(database, password="planted-secret")
    with (
        pytest.raises(StorageUnavailable) as refused,
        open_database(read_settings({"FOLDLOG_DATABASE_URL": url})),
    ):
        pass
    assert "planted-secret" not in str(refused.value)
