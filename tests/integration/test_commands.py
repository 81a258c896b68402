"""The commands of operators and auditors, on a real database."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from foldlog.domain.access import Grant, Role
from foldlog.domain.errors import DeviceRevoked, UnknownSpace
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import Importer
from foldlog.infrastructure.signing.keys import make_keys
from foldlog.scripts import console
from foldlog.scripts.main import cli
from foldlog.scripts.rebuild_workers import Task, rebuild_many
from tests.conftest import as_service
from tests.helpers import (
    A,
    B,
    a_token,
    changeset,
    delete,
    kept_conflict,
    new_id,
    pull_all,
    push_of,
    put,
)
from tests.integration.test_projector import assert_equals_fresh_fold, poison, random_history


@pytest.fixture
def run(cluster, database):
    """Runs `foldlog` on the test's database with the rights of the service's role."""
    url = as_service(cluster, database)

    def run(*arguments: str, input: str | bytes | None = None, code: int = 0):
        """Runs `foldlog` on the test's database with the rights of the service's role."""
        result = CliRunner().invoke(cli, [*arguments, "--database-url", url], input=input)
        assert result.exit_code == code, result.output
        return result

    return run


def test_an_import_is_the_same_log(stores, run, tmp_path):
    """Events, salts, ids, marks, the log's id, the table and the counters are the same."""
    head = random_history(stores, "s", seed=1)
    stores.push("s", push_of(changeset(put("ünïcode", x="\0 \"'")), changeset(delete("ünïcode"))))
    stores.push("s", push_of(changeset(counter=1), changeset(counter=2)))
    stores.push("s", push_of(changeset(guard="unchanged"), device=A))
    head += 5
    file = str(tmp_path / "log.jsonl.gz")

    run("export", "s", "-o", file)
    run("import", file, "--space", "t", "--unsigned")

    assert list(stores.entries("t", through=head)) == list(stores.entries("s", through=head))
    one, other = (stores.range_after(name, RangeQuery(head, 1)) for name in "st")
    assert (one.log, one.head, one.mark) == (other.log, other.head, other.mark)
    assert_equals_fresh_fold(stores, "t", head)
    next_one = push_of(changeset(counter=3))
    assert stores.push("t", next_one).verdicts[0].seq == head + 1


def test_an_imported_log_keeps_revocations_and_drops_tokens(stores, run, tmp_path):
    """Devices stay revoked after an import, and the old tokens are invalid in the new space."""
    (_, digest), id = a_token(), new_id()
    stores.grant("s", id, digest, Grant(role=Role.DEVICE, device=B, name="phone"), "ada")
    stores.push("s", push_of(changeset(put("x")), device=A))
    stores.revoke_device("s", A, reason="stolen")
    file = str(tmp_path / "log.jsonl.gz")

    run("export", "s", "-o", file)
    run("import", file, "--space", "t", "--unsigned")

    known = {device.device: device for device in stores.devices("t")}
    assert known[A].revoked_at == stores.devices("s")[0].revoked_at is not None
    assert known[B].name is None and known[B].registered_at is not None
    assert stores.tokens("t") == [] and stores.token("t", digest) is None
    with pytest.raises(DeviceRevoked):
        stores.push("t", push_of(changeset(put("x")), device=A))


def test_an_interrupted_import_resumes(stores, run, tmp_path):
    """The second run compares the stored events with the file and appends only the others."""
    head = random_history(stores, "s", seed=2)
    lines = run("export", "s").stdout.splitlines()
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(lines[:20]) + "\n")
    run("import", str(file), "--space", "t", "--unsigned", code=3)
    with pytest.raises(UnknownSpace):  # a refused file leaves nothing
        stores.range_after("t", RangeQuery(0, 1))
    log = stores.range_after("s", RangeQuery(0, 1)).log
    with Importer(stores.datastore).into("t", log) as imported:  # killed, later
        imported.add(list(stores.entries("s", through=20)))

    file.write_text("\n".join(lines) + "\n")
    run("import", str(file), "--space", "t", "--unsigned")
    run("import", str(file), "--space", "t", "--unsigned")

    assert pull_all(stores, "t") == pull_all(stores, "s")
    assert len(pull_all(stores, "t")) == head


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "7",
        '{"device":7}',
        '{"device":"phone"}',
        f'{{"device":"{A.upper()}x"}}',
        f'{{"device":"{A}","name":7}}',
        f'{{"device":"{A}","name":"\\u0000"}}',
        f'{{"device":"{A}","by":"ada","name":{{}}}}',
    ],
)
def test_an_export_with_an_invalid_device_event_is_refused(stores, run, tmp_path, body):
    """The error names the line of a forged or damaged event."""
    stores.push("s", push_of(changeset(put("x"))))
    stores.register("s", A, by="ada")
    file = tmp_path / "forged.jsonl"
    file.write_text(run("export", "s").stdout.replace(f'{{"device":"{A}","by":"ada"}}', body))
    result = run("import", str(file), "--space", "t", "--unsigned", code=3)
    assert "seq 2: " in result.stderr and "(invalid-export)" in result.stderr


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("record-erased", "{}"),
        ("record-erased", "7"),
        ("record-erased", '{"collection":"tasks","id":"\\u0000"}'),
        ("record-erased", '{"collection":["tasks"],"id":"x"}'),
        ("event-skipped", "{}"),
        ("event-skipped", '{"seq":"1"}'),
        ("event-skipped", '{"seq":0}'),
        ("event-skipped", '{"seq":1000000000000000000000}'),
    ],
)
def test_an_export_with_an_invalid_erasure_or_skip_is_refused(stores, run, tmp_path, kind, body):
    """The error names the line of a forged or damaged event."""
    stores.push("s", push_of(changeset(put("x"))))
    stores.register("s", A, by="ada")
    text = run("export", "s").stdout.replace("device-registered", kind)
    file = tmp_path / "forged.jsonl"
    file.write_text(text.replace(f'{{"device":"{A}","by":"ada"}}', body))
    result = run("import", str(file), "--space", "t", "--unsigned", code=3)
    assert "seq 2: " in result.stderr and "(invalid-export)" in result.stderr


def _without(lines, number):
    return [line for n, line in enumerate(lines) if n != number]


@pytest.mark.parametrize(
    ("damage", "tells"),
    [
        (lambda lines: _without(lines, 3), "seq 3: the log continues with 4"),
        (lambda lines: lines[:-1], "seq 6: the events end here, of 6"),
        (lambda lines: lines[1:], "line 1 is not the header"),
        (lambda lines: [*lines[:4], "oh no", *lines[5:]], "line 5"),
        (
            lambda lines: [*lines[:4], lines[4].replace('"salt":"', '"salt":"zz'), *lines[5:]],
            "line 5",
        ),
        (
            lambda lines: [*lines[:3], lines[3].replace('"seq":3', '"seq":4'), *lines[4:]],
            "seq 3: the log continues with 4",
        ),
        (lambda lines: [*lines[:6], lines[1].replace('"seq":1,', '"seq":6,')], "an id comes twice"),
        (lambda lines: [lines[0].replace('"version":1', '"version":2'), *lines[1:]], "line 1"),
        (lambda _: [], "line 1"),
    ],
    ids=range(9),
)
def test_a_damaged_export_is_refused(stores, run, tmp_path, damage, tells):
    """The error names the line and the problem; the exit code is 3."""
    stores.push("s", push_of(*(changeset(put(str(n))) for n in range(6))))
    lines = run("export", "s").stdout.splitlines()
    file = tmp_path / "damaged.jsonl"
    file.write_text("".join(line + "\n" for line in damage(lines)))

    result = run("import", str(file), "--space", "t", "--unsigned", code=3)

    assert tells in result.stderr.replace("\n", " ")
    assert "(invalid-export)" in result.stderr


def test_a_truncated_archive_is_refused(stores, run, tmp_path):
    """The error has the code `invalid-export`."""
    random_history(stores, "s", seed=3)
    file = tmp_path / "log.jsonl.gz"
    run("export", "s", "-o", str(file))
    file.write_bytes(file.read_bytes()[:-40])
    assert "invalid-export" in run("import", str(file), "--space", "t", "--unsigned", code=3).stderr


def test_an_import_keeps_an_existing_log(stores, run, tmp_path):
    """A space with another log stays unchanged."""
    stores.push("s", push_of(changeset()))
    stores.push("t", push_of(changeset()))
    file = str(tmp_path / "log.jsonl")
    run("export", "s", "-o", file)
    before = pull_all(stores, "t")
    assert "import-conflict" in run("import", file, "--space", "t", "--unsigned", code=3).stderr
    stores.push("s", push_of(changeset()))
    assert (
        "import-conflict" in run("import", file, "--unsigned", code=3).stderr
    )  # the export is older
    assert pull_all(stores, "t") == before


def test_replay_prints_the_stored_bytes(stores, run):
    """Every range is printed exactly as stored."""
    random_history(stores, "s", seed=4)
    stored = [state.decode() for state in pull_all(stores, "s")]
    assert run("replay", "s").stdout.splitlines() == stored
    assert run("replay", "s", "--from", "5", "--to", "9").stdout.splitlines() == stored[4:9]
    assert run("replay", "s", "--from", "999").stdout == ""


def test_replay_folds_as_of_any_seq(stores, run):
    """`--fold --to N` prints the master table as it was right after N."""
    for n in range(6):
        stores.push("s", push_of(changeset(put("r", n=n))))
        page = stores.record("s", ("tasks", "r"), at_least=n + 1)
        folded = run("replay", "s", "--fold", "--to", str(n + 1)).stdout.splitlines()
        assert [json.loads(line) for line in folded] == [json.loads(page.records[0])]


def test_replay_beyond_the_head_is_refused(stores, run):
    """An auditor who asks for seq 99 gets an error instead of the records at seq 3."""
    stores.push("s", push_of(changeset(), changeset(), changeset()))
    result = run("replay", "s", "--fold", "--to", "99", code=3)
    assert "ends at seq 3" in result.stderr and result.stdout == ""


def test_an_import_into_a_space_that_a_device_just_made(stores, run, tmp_path):
    """After a disaster, a device may sync before the import; its empty space accepts the log."""
    stores.push("s", push_of(changeset()))
    file = str(tmp_path / "log.jsonl")
    run("export", "s", "-o", file)
    stores.push("t", push_of())
    run("import", file, "--space", "t", "--unsigned")
    assert pull_all(stores, "t") == pull_all(stores, "s")
    assert (
        stores.range_after("t", RangeQuery(0, 1)).log
        == stores.range_after("s", RangeQuery(0, 1)).log
    )


def test_replay_prints_conflicts(stores, run):
    """`--conflicts` prints the same conflicts as the ledger."""
    random_history(stores, "s", seed=5)
    head = stores.range_after("s", RangeQuery(0, 1)).head
    assert_equals_fresh_fold(stores, "s", head)
    ledger = stores.conflicts("s", limit=1_000, cursor=None).conflicts
    printed = run("replay", "s", "--conflicts").stdout.splitlines()
    assert [json.loads(line) for line in printed] == [kept_conflict(doc) for doc in ledger]
    assert printed


def test_status_shows_lag_and_halted_projections(stores, run, database):
    """Each projection has a line, as table or JSON; exit code 1 means that one is halted."""
    random_history(stores, "s", seed=6, pushes=10)
    master, proofs = map(json.loads, run("status", "--json").stdout.splitlines())
    for line in master, proofs:
        assert (line["space"], line["head"], line["position"], line["lag"]) == ("s", 10, 0, 10)
    assert (master["projection"], proofs["projection"]) == ("master", "proofs")
    stores.project()
    master, proofs = map(json.loads, run("status", "s", "--json").stdout.splitlines())
    assert (master["lag"], proofs["lag"]) == (0, 10)
    assert "live" in run("status").stdout
    with stores.datastore.committed() as cursor:
        cursor.execute("UPDATE projections SET stopped_at = 3, stopped_why = 'why'")
    assert "stopped at 3" in run("status", code=1).stdout


def test_status_says_that_nothing_is_signed(stores, run, tmp_path, monkeypatch):
    """A database without a key, or with an unusable one, says so until a key is made."""
    monkeypatch.setenv("FOLDLOG_KEYS", str(tmp_path / "keys"))
    assert "nothing is signed: there is no key in" in run("status").stdout
    random_history(stores, "s", seed=6, pushes=10)
    assert "nothing is signed: there is no key in" in run("status").stdout
    lines = map(json.loads, run("status", "s", "--json").stdout.splitlines())
    assert all("foldlog keys new" in line["unsigned_why"] for line in lines)
    make_keys(tmp_path / "keys")
    assert "nothing is signed" not in run("status").stdout
    (tmp_path / "keys" / "keys.json").write_text("{")
    assert "nothing is signed" in run("status").stdout


def test_rebuild_as_a_command(stores, run):
    """It rebuilds one space or all; a difference is printed and gives exit code 1."""
    random_history(stores, "s", seed=7)
    random_history(stores, "t", seed=8)
    stores.project()
    assert "60 events" in run("rebuild", "s", "--verify").stdout
    assert run("rebuild", "--all", "--verify").stdout.count("equal to the live table") == 2
    with stores.datastore.committed() as cursor:
        cursor.execute(
            "UPDATE records SET is_deleted = NOT is_deleted WHERE space = 't' AND id = 'a'"
        )
    result = run("rebuild", "--all", "--verify", code=1)
    assert "t: " in result.stderr and "s: 60 events" in result.stdout
    run("rebuild", "t")
    run("rebuild", "t", "--verify")


def test_rebuild_of_many_spaces(stores, run, database):
    """Several processes rebuild; an error in one space is printed, and the others are rebuilt."""
    heads = {f"s{n}": random_history(stores, f"s{n}", seed=n, pushes=5 * n) for n in range(1, 7)}
    stores.project()
    poison(database, "s2", heads["s2"] + 1)
    with stores.datastore.committed() as cursor:
        cursor.execute("DELETE FROM records WHERE space = 's4' AND id = 'a'")

    result = run("rebuild", *heads, "nowhere", "--verify", "--jobs", "3", code=3)

    told = " ".join(result.stderr.split())
    assert f"s2: an event cannot be processed: seq {heads['s2'] + 1}" in told
    assert "no space 'nowhere' (unknown-space)" in told
    assert "differs: s4: the rebuilt table has in records" in told
    assert "`foldlog rebuild s4` without --verify" in told
    lines = result.stdout.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["s1", "s3", "s5", "s6"]
    assert all("equal to the live table; generation 2 is live" in line for line in lines)
    assert "events" in run("rebuild", "s4", "--jobs", "1").stdout
    for space in ("s1", "s3", "s4", "s5", "s6"):
        assert_equals_fresh_fold(stores, space, heads[space])


def test_progress_of_many_spaces_is_one_sum(stores, database):
    """Each worker reports the position of its space; the last reports equal the heads."""
    heads = {f"s{n}": random_history(stores, f"s{n}", seed=n, pushes=10 + n) for n in range(3)}
    told = {}
    outcomes = rebuild_many(
        database,
        list(heads),
        Task(),
        jobs=3,
        report=lambda space, position, head: told.update({space: (position, head)}),
    )
    assert {outcome.space: outcome.rebuilt.events for outcome in outcomes} == heads
    assert told == {space: (head, head) for space, head in heads.items()}


@pytest.mark.parametrize("who", [pytest.param("the command", marks=pytest.mark.slow), "a worker"])
def test_kill_9_of_a_rebuild_of_many_spaces(stores, database, run, who):
    """All processes end and release their spaces, and the next rebuild resumes correctly."""
    heads = {f"s{n}": random_history(stores, f"s{n}", seed=n, pushes=20) for n in range(4)}
    stores.project()
    command = [sys.executable, "-m", "foldlog", "rebuild", "--all", "--jobs", "2"]
    with psycopg.connect(database) as held:
        # The lock blocks new generations, so the workers wait and can be found.
        held.execute("LOCK TABLE projections IN EXCLUSIVE MODE")
        process = subprocess.Popen(
            [*command, "--database-url", database], stderr=subprocess.PIPE, text=True
        )
        try:
            assert _waiting_for_locks(database, 2)
            family = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in family if "spawn_main" in " ".join(child.cmdline())]
            assert len(workers) == 2
            (process if who == "the command" else workers[0]).send_signal(signal.SIGKILL)
            assert process.wait(30) == (-signal.SIGKILL if who == "the command" else 3)
            assert psutil.wait_procs(family, timeout=10)[1] == []
        finally:
            process.kill()
            told = process.communicate()[1]
    assert ("a worker process died" in told) == (who == "a worker")
    run("rebuild", "--all", "--verify")
    for space, head in heads.items():
        assert_equals_fresh_fold(stores, space, head)


def _waiting_for_locks(database: str, number: int) -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    deadline = time.monotonic() + 30
    with psycopg.connect(database, autocommit=True) as conn:
        while conn.execute(statement).fetchone() != (number,):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("arguments", "code", "tells"),
    [
        (("status", "nowhere"), 3, "unknown-space"),
        (("replay", "nowhere"), 3, "unknown-space"),
        (("export", "nowhere"), 3, "unknown-space"),
        (("rebuild", "nowhere"), 3, "unknown-space"),
        (("rebuild",), 2, "--all"),
        (("rebuild", "s", "--all"), 2, "--all"),
        (("replay", "s", "--fold", "--conflicts"), 2, "--fold"),
        (("replay", "s", "--from", "0"), 2, "--from"),
        (("replay", "s", "--from", "3", "--to", "2"), 2, "--from 3"),
        (("import", "/no/such/file"), 2, "does not exist"),
        (("migrate",), 0, "nothing to do"),
    ],
)
def test_errors_have_a_code_and_no_traceback(run, arguments, code, tells):
    """Each error has its exit code and a text that names the cause."""
    result = run(*arguments, code=code)
    assert tells in result.output
    assert "Traceback" not in result.output


def test_every_command_has_help():
    """The group's help lists the exit codes and all commands."""
    group = CliRunner().invoke(cli, ["--help"]).output
    assert "Exit codes" in group
    for name in cli.list_commands(None):
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0 and name in group
        assert len(result.output.splitlines()) > 5


def test_an_unreachable_database_is_an_error(tmp_path):
    """The error has the code `storage-unavailable`."""
    arguments = ["status", "--database-url", f"postgresql:///x?host={tmp_path}"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == console.EXIT_FAILED
    assert "storage-unavailable" in result.stderr


def test_all_invalid_settings_are_reported_at_once(monkeypatch):
    """One message names every invalid setting."""
    monkeypatch.setenv("FOLDLOG_PORT", "70000")
    monkeypatch.setenv("FOLDLOG_LOG_FORMAT", "yaml")
    result = CliRunner().invoke(cli, ["serve"])
    assert result.exit_code == console.EXIT_FAILED
    assert "FOLDLOG_PORT" in result.stderr and "FOLDLOG_LOG_FORMAT" in result.stderr


def test_a_closed_pipe_ends_the_output_quietly(stores, database):
    """`foldlog replay | head` succeeds."""
    for _ in range(5):
        stores.push("s", push_of(*(changeset(put(text="x" * 500)) for _ in range(100))))
    command = f"{sys.executable} -m foldlog replay s --database-url '{database}' | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert '"seq":1' in done.stdout and "Traceback" not in done.stderr
