"""Commands on a data folder without a database, and errors that name their database."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from foldlog.scripts.main import cli

QUESTIONS = [
    ["status"],
    ["token", "list"],
    ["token", "new", "--role", "admin", "--every-space"],
    ["replay", "s"],
    ["export", "s", "-o", "-"],
    ["rebuild", "s"],
    ["pg"],
]


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_question_to_a_missing_folder_creates_nothing(tmp_path, words, is_there):
    folder = tmp_path / "typo"
    if is_there:
        folder.mkdir()
    program = ["psql"] if words == ["pg"] else []
    result = CliRunner().invoke(cli, [*words, "--data", str(folder), *program])
    assert result.exit_code == 3 and "(data-folder-missing)" in result.stderr
    assert f"data folder: {folder}" in result.stderr
    assert folder.exists() is is_there and not (is_there and list(folder.iterdir()))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = CliRunner().invoke(cli, ["status", "--data", str(file)])
    assert result.exit_code == 3 and f"data folder: {file}" in result.stderr
    assert "data-folder-missing" not in result.stderr


def test_an_error_names_the_server_without_its_password(tmp_path):
    url = f"postgresql://ada:geheim@/x?host={tmp_path}"
    result = CliRunner().invoke(cli, ["status", "--database-url", url])
    assert result.exit_code == 3 and "geheim" not in result.stderr
    assert f"database: host={tmp_path} dbname=x user=ada" in result.stderr


@pytest.mark.parametrize("time", ["2099-01-01", "2099-01-01T00:00:00", "tomorrow"])
def test_a_time_needs_its_offset(time):
    words = ["token", "new", "--role", "reader", "--space", "s", "--expires", time]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2 and "RFC 3339" in result.stderr
