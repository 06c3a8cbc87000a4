#!lua flags=allow-oom
-- Hand out jobs of some handlers of one queue. A take is a pop: priority by priority, and within one, a turn each.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 ticket, 3 limit, 4 lease ms (for a worker that has none yet), 5 queue, then the handlers
-- Answer for each job: job, priority, handler, key, body, notes, lost

local worker, ticket, room, queue = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[5]
local jobs, from, records = {}, {}, {}

local handlers, paused = {}, {}
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do paused[name] = true end
for i = 6, #ARGV do
  if not paused[queue] and not paused[queue .. '|' .. ARGV[i]] then handlers[#handlers + 1] = ARGV[i] end
end

local function take_entry(prio, handler, entry)
  local key, job = '', string.sub(entry, 2)
  if string.sub(entry, 1, 1) == 'L' then
    key = job
    job = call('LINDEX', P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key, 0)
    if not job then return end
  end
  room = room - 1
  jobs[#jobs + 1] = job
  from[#from + 1] = { prio, handler, key }
  records[#records + 1] = job
  records[#records + 1] = ticket .. '|' .. #jobs .. '|' .. prio .. '|' .. queue .. '|' .. handler .. '|' .. key
end

for prio = 0, 2 do
  local found = true
  while found and room > 0 do
    found = false
    local share = math.ceil(room / #handlers)
    for _, handler in ipairs(handlers) do
      local n = math.min(share, room)
      local entries = n > 0 and call('LPOP', P .. 'ready:' .. queue .. '|' .. handler .. '|' .. prio, n) or {}
      for _, entry in ipairs(entries or {}) do
        take_entry(prio, handler, entry)
        found = true
      end
    end
  end
end

-- Whoever fills up with work left over passes the wake-up on.
if room == 0 then
  for _, handler in ipairs(handlers) do
    for prio = 0, 2 do
      if call('EXISTS', P .. 'ready:' .. queue .. '|' .. handler .. '|' .. prio) == 1 then ring(queue .. '|' .. handler) end
    end
  end
  ring_all()
end
if #jobs == 0 then return {} end

call('ZADD', P .. 'workers', 'NX', now_ms() + tonumber(ARGV[4]), worker)
in_chunks(records, function(...) call('HSET', P .. 'held:' .. worker, ...) end)

local answer = {}
for i, job in ipairs(jobs) do
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = job, from[i][1], from[i][2], from[i][3]
  answer[n + 5] = call('HGET', P .. 'jobs', job) or ''
  answer[n + 6] = call('HGET', P .. 'notes', job) or ''
  answer[n + 7] = tonumber(call('HGET', P .. 'lost', job) or 0)
end
return answer
