-- SPDX-License-Identifier: Apache-2.0
-- Arguments: requests under way on a connection, decisions of a request.

local requests = {}
local turn = 0

local function question(number)
  return string.format(
    '{"source":{"spiffe_id":"spiffe://hanzo.ai/bench/a/%d"},'
      .. '"destination":{"spiffe_id":"spiffe://hanzo.ai/bench/b/%d","port":%d,"protocol":"TCP"}}',
    number * 7 % 1000, number * 13 % 100, 1 + number % 2)
end

function init(arguments)
  local depth, batch = tonumber(arguments[1]), tonumber(arguments[2])
  local headers = { ["Content-Type"] = "application/json" }
  local number = 0
  for i = 1, 256 do
    local sent = {}
    for j = 1, depth do
      local body
      if batch == 1 then
        body = question(number)
        number = number + 1
      else
        local questions = {}
        for k = 1, batch do
          questions[k] = question(number)
          number = number + 1
        end
        body = '{"requests":[' .. table.concat(questions, ",") .. "]}"
      end
      sent[j] = wrk.format("POST", "/v1/evaluate", headers, body)
    end
    requests[i] = table.concat(sent)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    'outcome {"requests":%d,"microseconds":%d,"failed":%d,"latency":[%d,%d,%d,%d]}',
    summary.requests, summary.duration, failed,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
