-- The bodies of the file `BODIES`, a line each, once each; without it, the same request again.
-- What came of it is printed as JSON. See wrk.py.
local bodies = os.getenv("BODIES")
local path = os.getenv("REQUEST_PATH")
local lines, same, tried

function init(args)
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Accept-Encoding"] = "identity"
  if bodies then lines = io.lines(bodies) else same = wrk.format("GET", path) end
end

function request()
  if same then return same end
  if not tried then  -- wrk looks at a first request, and does not send it
    tried = true
    return wrk.format("POST", path, nil, "{}")
  end
  -- The file is longer than the time; if it is not, the service refuses, and the run fails.
  return wrk.format("POST", path, nil, lines() or "")
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"answers":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
