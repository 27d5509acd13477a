-- A webhook for wrk: POST of 1 KiB JSON. Arguments: the host, and "close" for a connection per request.
-- Prints one line: RESULT requests microseconds p50 p99 errors
function init(args)
  wrk.method = "POST"
  wrk.headers["Host"] = args[1]
  wrk.headers["Content-Type"] = "application/json"
  if args[2] == "close" then wrk.headers["Connection"] = "close" end
  local head = '{"type":"payment.succeeded","id":"evt_0001","data":"'
  wrk.body = head .. string.rep("x", 1024 - #head - 2) .. '"}'
  request_bytes = wrk.format(nil, "/hook")
end

function request() return request_bytes end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
