#!lua flags=no-writes,allow-oom
-- Count the work of every queue and handler.
--
-- KEYS  1 prefix
-- Answer {paused names, {worker, what it serves, ...}, for each queue|handler: name, unfinished, ready, delayed, held lanes,
--         suspects, body of the oldest ready job or "", number of workers that hold some, then for each: worker, how many}
--
-- Delayed work is counted up to 10,000 entries, so that a look never holds the server up for long.

local counts = call('HGETALL', P .. 'pending')
local of = {}
for i = 1, #counts, 2 do
  of[counts[i]] = { unfinished = tonumber(counts[i + 1]), ready = 0, delayed = 0, lanes = 0, suspects = 0, by = {}, workers = 0 }
end

for _, member in ipairs(call('ZRANGE', P .. 'due', 0, 9999)) do
  local kind, _, _, queue, handler = unpack_due(member)
  local it = of[queue .. '|' .. handler]
  if it and kind == 'L' then it.lanes = it.lanes + 1 elseif it then it.delayed = it.delayed + 1 end
end

for _, name in ipairs(call('HKEYS', P .. 'suspects')) do
  for lost = SUSPECT, MOST_SUSPECT do
    local it = of[name]
    if it then it.suspects = it.suspects + call('LLEN', P .. 'suspects:' .. name .. '|' .. lost) end
  end
end

for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
  for _, record in ipairs(call('HVALS', P .. 'held:' .. worker)) do
    local _, _, queue, handler = unpack_held(record)
    local it = of[queue .. '|' .. handler]
    if it then
      if not it.by[worker] then it.workers = it.workers + 1 end
      it.by[worker] = (it.by[worker] or 0) + 1
    end
  end
end

local answer = { call('SMEMBERS', P .. 'paused'), call('HGETALL', P .. 'serves') }
for name, it in pairs(of) do
  local oldest
  for prio = 0, 2 do
    local ready = P .. 'ready:' .. name .. '|' .. prio
    it.ready = it.ready + call('LLEN', ready)
    local entry = call('LINDEX', ready, 0)
    if entry then
      local job = unpack_ready(entry)
      if not oldest or tonumber(job) < tonumber(oldest) then oldest = job end
    end
  end
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4], answer[n + 5] =
    name, it.unfinished, it.ready, it.delayed, it.lanes
  answer[n + 6] = it.suspects
  answer[n + 7] = oldest and call('HGET', P .. 'jobs', oldest) or ''
  answer[n + 8] = it.workers
  for worker, held in pairs(it.by) do
    answer[#answer + 1] = worker
    answer[#answer + 1] = held
  end
end
return answer
