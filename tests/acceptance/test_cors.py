"""Which pages a browser lets call the service."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.settings import InvalidSettings, read_settings
from foldlog.scripts.server.sockets import listen
from foldlog.scripts.server.web import AsgiServer, server_of

from .live import until

PAGE = "https://app.example"
ASKED = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-encoding,content-type,last-event-id",
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def cors_of(answer) -> dict[str, str]:
    names = {name.title() for name, _ in answer.headers if name.lower().startswith("access-")}
    return {name: answer.headers[name] for name in names}


def preflight(client, origin: str, path: str = "changesets"):
    return client.http.options(client.url(path), headers={"Origin": origin, **ASKED})


def test_nothing_is_sent_unless_it_is_set(client):
    """A page elsewhere is not let in by default."""
    for answer in (preflight(client, PAGE), client.get("events", headers={"Origin": PAGE})):
        assert cors_of(answer) == {}
        assert "Origin" not in ", ".join(answer.headers.getlist("Vary"))


@pytest.mark.parametrize("path", ["changesets", "events/stream", "records", "records/tasks/a%2Fb"])
def test_a_browser_that_asks_first_is_answered(app_with, path):
    """Without a token, which it does not send yet: the calls at each door, and any other."""
    answer = preflight(app_with(cors_origins=(PAGE,)), PAGE, path)

    assert (answer.status_code, answer.data) == (200, b"")
    allowed = cors_of(answer)
    assert allowed["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in allowed["Access-Control-Allow-Methods"].split(", ")
    wanted = set(ASKED["Access-Control-Request-Headers"].split(","))
    assert wanted <= set(allowed["Access-Control-Allow-Headers"].lower().split(", "))
    assert int(allowed["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in allowed
    assert answer.headers.getlist("Vary") == ["Origin"]


@pytest.mark.parametrize(
    "origin",
    ["", "null", "https://app.example.evil.test", "https://APP.example", "http://app.example"],
)
def test_another_page_is_left_out(app_with, origin):
    """Exactly the origins that are set; and a cache learns that it depends on who asks."""
    client = app_with(cors_origins=(PAGE, "capacitor://localhost"))
    for answer in (preflight(client, origin), client.get("events", headers={"Origin": origin})):
        assert cors_of(answer) == {}
        assert "Origin" in ", ".join(answer.headers.getlist("Vary"))


@pytest.mark.parametrize("path", ["events", "snapshot", "records", "records/tasks/1"])
def test_answers_can_be_read_refusals_too(app_with, path):
    """A page that may not read why it is refused cannot heal."""
    client = app_with(cors_origins=("https://other.example", PAGE))
    answer = client.get(path, headers={"Origin": PAGE})
    assert answer.status_code == 404
    assert cors_of(answer) == {
        "Access-Control-Allow-Origin": PAGE,
        "Access-Control-Expose-Headers": "*",
    }
    assert "Origin" in ", ".join(answer.headers.getlist("Vary"))


def test_any_page_may_where_that_is_set(app_with):
    """The same answer for everybody, so that caches need not tell them apart."""
    client = app_with(cors_origins=("*",))
    for origin in (PAGE, "null"):
        assert preflight(client, origin).headers["Access-Control-Allow-Origin"] == "*"
        answer = client.get("events", headers={"Origin": origin})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Origin" not in ", ".join(answer.headers.getlist("Vary"))


def test_options_without_asking_is_an_ordinary_request(app_with):
    """Which tells the methods of a path, as it always did."""
    answer = app_with(cors_origins=("*",)).http.options("/v1/limits")
    assert "GET" in answer.headers["Allow"]
    assert "Access-Control-Allow-Methods" not in answer.headers


def test_the_setting():
    def origins(text: str) -> tuple[str, ...]:
        return read_settings({"FOLDLOG_CORS_ORIGINS": text}).cors_origins

    assert origins("") == ()
    assert origins("*") == ("*",)
    text = "https://app.example http://localhost:5173 capacitor://localhost http://[::1]:80"
    assert origins(text) == tuple(text.split())
    wrong = "https://app.example/ app.example https://*.example * https://A.example null"
    for text in [*wrong.split()[:3], wrong, "https://A.example", "null", f"* {PAGE}"]:
        with pytest.raises(InvalidSettings, match="FOLDLOG_CORS_ORIGINS"):
            origins(text)


PAGE_HTML = """<!doctype html><title>an app</title><pre id="told">nothing</pre><script>
const base = "SERVICE/v1/spaces/browser/";
const headers = {"Authorization": "Bearer some-token", "Content-Type": "application/json"};
const push = {device: "5d0e0000-0000-4000-8000-000000000001", sent_at: new Date().toISOString(),
  changesets: [{id: crypto.randomUUID(), base: 0, made_at: new Date().toISOString(),
                ops: [{op: "put", collection: "tasks", id: "1", fields: {title: "from a page"}}]}]};
async function run() {
  const pushed = await fetch(base + "changesets",
                             {method: "POST", headers, body: JSON.stringify(push)});
  const refused = await fetch(base + "events?after=-1", {headers});
  const stream = await fetch(base + "events/stream", {headers: {...headers, "Last-Event-ID": "0"}});
  const reader = stream.body.getReader();
  let seen = "";
  while (!seen.includes("from a page")) {
    const {value, done} = await reader.read();
    if (done) break;
    seen += new TextDecoder().decode(value);
  }
  reader.cancel();
  return {pushed: (await pushed.json()).verdicts[0].verdict,
          request: pushed.headers.get("X-Request-Id"),
          refused: (await refused.json()).code, streamed: seen.includes("from a page")};
}
run().then(told => told, error => ({error: String(error)}))
     .then(told => { document.getElementById("told").textContent = JSON.stringify(told);
                     return fetch("/told", {method: "POST", body: JSON.stringify(told)}); });
</script>"""


class _App(http.server.BaseHTTPRequestHandler):
    """Serves the page from an origin of its own, and hears what it has to tell."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page)

    def do_POST(self):
        self.server.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.seconds(20)
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium")
@pytest.mark.parametrize("is_allowed", [True, False], ids=["allowed", "not allowed"])
def test_a_real_browser(tmp_path, is_allowed):
    """A page of another origin pushes with a token, reads a refusal, and follows a stream."""
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _App)
    page.told = None
    origin = f"http://127.0.0.1:{page.server_port}"
    store = MemoryStore()
    app = create_app(
        store=store,
        master=store,
        ready=dict,
        cors_origins=(origin if is_allowed else "https://other.example",),
        access=OpenAccess(),
    )
    with Resources(4) as resources:
        server = server_of(AsgiServer(app, resources))
        [listening] = listen("127.0.0.1", 0)
        service = f"http://127.0.0.1:{listening.getsockname()[1]}"
        page.page = PAGE_HTML.replace("SERVICE", service).encode()
        serving = threading.Thread(target=server.run, args=([listening],), daemon=True)
        serving.start()
        threading.Thread(target=page.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--no-first-run", f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", origin],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: page.told is not None, seconds=60)
        finally:
            browser.kill()
            browser.wait()
            server.should_exit = True
            serving.join(30)
            page.shutdown()
    if is_allowed:
        assert page.told["request"]
        assert page.told | {"request": None} == {
            "pushed": "stored",
            "request": None,
            "refused": "invalid-request",
            "streamed": True,
        }
    else:
        assert "Failed to fetch" in page.told["error"]
