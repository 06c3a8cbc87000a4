#!lua flags=allow-oom
-- A worker's heartbeat, and the sweep that any worker may do.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 lease ms (0: the worker leaves and hands all back), 3 ticket up to which takes have been received,
--       4 leases that may run out under a job, 5 retention of dead letters ms, then the jobs that the worker holds
-- Answer {ms until the next delayed work or -1, recovered, handed back}

local worker, lease = ARGV[1], tonumber(ARGV[2])
local received, max_lost = tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local recovered, handed_back = 0, 0

local function recover(job, record)
  local _, prio, queue, handler, key = unpack_held(record)
  recovered = recovered + 1
  if call('HINCRBY', P .. 'lost', job, 1) >= max_lost then
    bury(job, 'poison', prio, queue, handler, key, now)
  else
    put_back(prio, queue, handler, key, job)
  end
end

-- 1. What this worker holds in our books but not in its hands was lost on the way: back to the heads of the lanes.
local mine = {}
for i = 6, #ARGV do mine[ARGV[i]] = true end
local books = call('HGETALL', P .. 'held:' .. worker)
for i = 1, #books, 2 do
  local ticket, prio, queue, handler, key = unpack_held(books[i + 1])
  if lease == 0 or (ticket <= received and not mine[books[i]]) then
    call('HDEL', P .. 'held:' .. worker, books[i])
    put_back(prio, queue, handler, key, books[i])
    handed_back = handed_back + 1
  end
end
if lease > 0 then
  call('ZADD', P .. 'workers', now + lease, worker)
else
  call('ZREM', P .. 'workers', worker)
end

-- 2. The leases that ran out.
for _, gone in ipairs(call('ZRANGEBYSCORE', P .. 'workers', '-inf', now)) do
  local its = call('HGETALL', P .. 'held:' .. gone)
  for i = 1, #its, 2 do recover(its[i], its[i + 1]) end
  call('DEL', P .. 'held:' .. gone)
  call('ZREM', P .. 'workers', gone)
end

-- 3. What is due joins its lane, a bounded number at a time: the answer says 0 ms when there is more.
for _, member in ipairs(call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, 1000)) do
  local kind, prio, queue, handler, rest = string.match(member, '^(%a)|(%d)|([^|]*)|([^|]*)|(.*)$')
  if kind == 'L' then
    make_ready(prio, queue, handler, 'L' .. rest)
  else
    local job, key = string.match(rest, '^(%d+)|(.*)$')
    join_lane(prio, queue, handler, key, job)
  end
  call('ZREM', P .. 'due', member)
end

-- 4. Dead letters past their retention.
local stale = call('ZRANGEBYSCORE', P .. 'dead', '-inf', now - tonumber(ARGV[5]), 'LIMIT', 0, 100)
if #stale > 0 then
  call('ZREM', P .. 'dead', unpack(stale))
  call('HDEL', P .. 'letters', unpack(stale))
  forget(stale)
end

-- 5. A ring that a dying worker took along is rung again.
for _, name in ipairs(call('HKEYS', P .. 'pending')) do
  for prio = 0, 2 do
    if call('EXISTS', P .. 'ready:' .. name .. '|' .. prio) == 1 then ring(name) end
  end
end

ring_all()
local next_due = call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
return { next_due and math.max(0, tonumber(next_due) - now) or -1, recovered, handed_back }
