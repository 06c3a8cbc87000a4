#!lua flags=allow-oom
-- A worker's heartbeat, and the sweep that any worker may do.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 lease ms (0: the worker leaves and hands all back; no sweep), 3 its last ticket and after it those whose
--       answers are on their way, 4 leases that may run out under a job, 5 retention of dead letters ms, 6 queue|handler of
--       all that it serves, 7 whether it is stopping (1 or 0), 8 the ticket under which it stands by, or 0, then the jobs that it holds, each as
--       job|ticket. What is several is separated by spaces
-- Answer {ms until the next delayed work or -1, recovered, handed back, 1 if the store did not know the worker else 0, of the
--         recovered: those that were buried}

local worker, lease = ARGV[1], tonumber(ARGV[2])
local max_lost = tonumber(ARGV[4])
local last_ticket, unanswered
for ticket in string.gmatch(ARGV[3], '%d+') do
  if last_ticket then unanswered[tonumber(ticket)] = true else last_ticket, unanswered = tonumber(ticket), {} end
end
local now = now_ms()
local recovered, buried = 0, {}

-- Who has said that it stops has not died of what it left behind.
local function recover(job, record, died)
  local _, prio, queue, handler, key = unpack_held(record)
  recovered = recovered + 1
  if died then any_lost = true end
  if died and call('HINCRBY', P .. 'lost', job, 1) >= max_lost then
    bury(job, 'poison', prio, queue, handler, key, now)
    buried[#buried + 1] = job
  else
    put_back(prio, queue, handler, key, job)
  end
end

local function read_books(of)
  local jobs, record_of, flat = {}, {}, call('HGETALL', P .. 'held:' .. of)
  for i = 1, #flat, 2 do
    jobs[#jobs + 1] = flat[i]
    record_of[flat[i]] = flat[i + 1]
  end
  return jobs, record_of
end

-- 1. What this worker holds in our books but not in its hands was lost on the way: back to the heads of the lanes.
local mine, strays = {}, {}
for i = 9, #ARGV do mine[ARGV[i]] = true end
local jobs, record_of = read_books(worker)
for _, job in ipairs(jobs) do
  local ticket = unpack_held(record_of[job])
  local lost = ticket <= last_ticket and not unanswered[ticket] and not mine[job .. '|' .. string.format('%d', ticket)]
  if lease == 0 or lost then strays[#strays + 1] = job end
end
last_taken_first(strays, record_of)
for _, job in ipairs(strays) do
  local _, prio, queue, handler, key = unpack_held(record_of[job])
  call('HDEL', P .. 'held:' .. worker, job)
  put_back(prio, queue, handler, key, job)
end
if not ARGV[9] then rejoin(worker) end -- or it may be at work on what was struck out of our books
if ARGV[7] == '1' then make_no_room(worker) end

local function strike_out(gone)
  call('DEL', P .. 'held:' .. gone)
  call('ZREM', P .. 'workers', gone)
  call('HDEL', P .. 'serves', gone)
  call('HDEL', P .. 'standby', gone)
  call('HDEL', P .. 'apart', gone)
  call('HDEL', P .. 'born', gone)
  call('SREM', P .. 'stopping', gone)
end

if lease == 0 then
  strike_out(worker)
  ring_all()
  return { -1, 0, #strays, 0, {} }
end
local forgotten = call('ZADD', P .. 'workers', now + lease, worker)
call('HSET', P .. 'serves', worker, ARGV[6])
if ARGV[8] == '0' then
  call('HDEL', P .. 'standby', worker)
else
  call('HSET', P .. 'standby', worker, string.format('%016d', ARGV[8]) .. ' ' .. ARGV[6] .. ' ')
end
call(ARGV[7] == '1' and 'SADD' or 'SREM', P .. 'stopping', worker)

-- 2. Time in which nobody could beat does not count: the server was away or hung, its workers were not. But only one who
-- was there before it is a witness of that; to one who came since, it may be that all the others are dead. At its first
-- beat it leaves their leases alone: a witness may beat yet.
local last = tonumber(call('HGET', P .. 'meta', 'b') or now)
local silence = now - last
call('HSETNX', P .. 'born', worker, now)
local sweeps = silence <= 3000 or forgotten == 0
if silence > 3000 and forgotten == 0 and tonumber(call('HGET', P .. 'born', worker)) <= last then
  for _, one in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
    if one ~= worker then call('ZINCRBY', P .. 'workers', silence, one) end
  end
end
if sweeps then call('HSET', P .. 'meta', 'b', now) end

-- 3. The leases that ran out.
for _, gone in ipairs(sweeps and call('ZRANGEBYSCORE', P .. 'workers', '-inf', now) or {}) do
  local its, its_record_of = read_books(gone)
  last_taken_first(its, its_record_of)
  local died = call('SISMEMBER', P .. 'stopping', gone) == 0
  for _, job in ipairs(its) do recover(job, its_record_of[job], died) end
  strike_out(gone)
end

-- 4. What is due joins its lane, a bounded number at a time: the answer says 0 ms when there is more.
for _, member in ipairs(call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, 1000)) do
  local kind, job, prio, queue, handler, key = unpack_due(member)
  if kind == 'L' or enter_lane(queue, handler, key, job) then offer(prio, queue, handler, key, job) end
  call('ZREM', P .. 'due', member)
end

-- 5. Dead letters past their retention.
local stale = call('ZRANGEBYSCORE', P .. 'dead', '-inf', now - tonumber(ARGV[5]), 'LIMIT', 0, 100)
if #stale > 0 then
  call('ZREM', P .. 'dead', unpack(stale))
  call('HDEL', P .. 'letters', unpack(stale))
  forget(stale)
end

-- 6. A ring that a dying worker took along is rung again.
for _, name in ipairs(call('HKEYS', P .. 'pending')) do
  if not paused[name] and not paused[string.match(name, '^[^|]*')] then
    if call('HEXISTS', P .. 'suspects', name) == 1 or any_ready(name) then ring(name) end
  end
end

ring_all()
local next_due = call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
return { next_due and math.max(0, tonumber(next_due) - now) or -1, recovered, #strays, forgotten, buried }
