"""The tests of each mutated module: the nearest first, then wider ones, as arguments of pytest."""

from __future__ import annotations

MEMORY = ["-k", "not postgres"]

U, P, C = "tests/unit/test_", "tests/property/test_", "tests/contract/test_"
PG, A = "tests/integration/test_", "tests/acceptance/test_"


def of(start: str, names: str) -> list[str]:
    return [f"{start}{name}.py" for name in names.split()]


STORED = of(U, "proofs forged_forms stored_form body_events push_decider")
ERASING = [*of(C, "erasure"), *of(P, "erasure_properties"), *MEMORY]
STORES = [*of(C, "event_store registry erasure collections history"), *of(P, "paging"), *MEMORY]
APPENDING = of(PG, "append nothing_is_skipped database_faults append_only")
READING = [*of(C, "event_store filtered_pages"), *of(U, "tails")]
PROJECTING = of(PG, "projector rebuild")

NEAREST: dict[str, list[list[str]]] = {
    # decided and stored
    "domain/changesets": [of(U, "changesets push_decider"), STORED, STORES],
    "domain/events": [STORED, ERASING, STORES],
    "domain/push_decider": [of(U, "push_decider"), STORES, APPENDING],
    "domain/guards": [of(U, "push_decider"), STORES],
    "domain/lookups": [of(U, "push_decider"), STORES],
    "domain/space_state": [of(U, "push_decider"), STORES, APPENDING],
    "domain/values": [of(U, "values push_decider merge"), STORES],
    "domain/times": [of(U, "times push_decider stored_form"), STORES],
    "domain/names": [of(U, "names changesets access"), STORES, of(A, "record_ids paths")],
    "domain/upcasts": [of(U, "upcasts stored_form")],
    "domain/skipping": [of(PG, "skipping")],
    "domain/history": [of(P, "history_properties"), [*of(C, "history"), *MEMORY]],
    # proven
    "domain/proofs": [of(U, "proofs forged_forms stored_form"), ERASING],
    "domain/merkle": [of(U, "merkle"), of(C, "proof_tree")],
    "domain/audit": [of(U, "forged_forms"), ERASING, of(PG, "erasure_and_proofs verify")],
    "domain/notes": [of(U, "notes"), of(PG, "signer witness")],
    # erased
    "domain/erasure": [of(U, "forged_forms"), ERASING, of(PG, "erasure erasure_door")],
    # allowed
    "domain/access": [of(U, "access"), [*of(C, "registry"), *MEMORY], of(A, "revocation access")],
    "api/http/access": [of(U, "access"), of(A, "revocation access")],
    # the log in PostgreSQL
    "infrastructure/postgres/log/pages": [READING, of(PG, "append skipping erasure")],
    "infrastructure/postgres/log/marks": [READING, APPENDING],
    "infrastructure/postgres/log/ranges": [READING, APPENDING],
    "infrastructure/postgres/log/writer": [of(PG, "append"), READING, [*of(C, "registry erasure")]],
    "infrastructure/postgres/log/tail_cache": [of(U, "tails"), READING],
    "infrastructure/postgres/append/appender": [APPENDING, of(C, "event_store")],
    "infrastructure/postgres/append/loading": [of(PG, "append"), of(C, "event_store erasure")],
    "infrastructure/postgres/append/spaces": [of(PG, "append"), of(C, "event_store registry")],
    "infrastructure/postgres/append/space_cache": [of(PG, "append"), of(C, "event_store")],
    "infrastructure/postgres/append/records_at_head": [
        of(PG, "append projector"),
        of(C, "event_store"),
    ],
    "infrastructure/postgres/append/service_event": [of(C, "registry erasure"), of(PG, "append")],
    "infrastructure/postgres/append/group_commit": [of(U, "group_commit"), of(PG, "append")],
    "infrastructure/postgres/service_events/erasure": [
        of(C, "erasure"),
        of(PG, "erasure erase_command"),
    ],
    # the projections in PostgreSQL
    "infrastructure/postgres/rebuild/batches": [PROJECTING],
    "infrastructure/postgres/rebuild/projector": [
        of(PG, "projector projector_faults"),
        of(PG, "rebuild"),
    ],
    "infrastructure/postgres/rebuild/positions": [PROJECTING],
    "infrastructure/postgres/rebuild/generations": [PROJECTING],
    "infrastructure/postgres/master/record_cache": [PROJECTING],
    # the devices
    "client/sync/applier": [
        ["tests/client/test_syncing.py", "tests/client/test_replica.py"],
        ["tests/client", "tests/simulation/test_hard_cases.py"],
    ],
    "client/sync/healer": [
        ["tests/simulation/test_hard_cases.py"],
        ["tests/client", "tests/simulation"],
    ],
    "client/sync/synchroniser": [
        ["tests/client/test_syncing.py"],
        ["tests/client", "tests/simulation/test_hard_cases.py"],
    ],
    "client/sync/batch": [
        ["tests/client/test_syncing.py"],
        ["tests/client", "tests/simulation/test_hard_cases.py"],
    ],
}
