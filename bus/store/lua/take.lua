#!lua flags=allow-oom
-- Hand out jobs of some handlers of one queue. A take is a pop: priority by priority, and within one, a turn each.
--
-- A suspect goes to a worker that holds nothing, alone. Where all are busy, one is set apart: it is handed nothing more, and
-- when it holds nothing, the suspect.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 ticket, 3 limit, 4 lease ms for a worker that has none yet (0: it is handed nothing), 5 queue, then for
--       each handler its name and how many of it at the most
-- Answer {the queue for which the worker is set apart or "", then for each job: job|priority|lost|handler|key, body, notes}

local worker, ticket, room, queue = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[5]
local held = P .. 'held:' .. worker
local lease = tonumber(ARGV[4])
if lease == 0 and not call('ZSCORE', P .. 'workers', worker) then return { '' } end

local jobs, from, records = {}, {}, {}

local handlers, wanted, left, paused = {}, {}, {}, {} -- left: how many more of each
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do paused[name] = true end
for i = 6, #ARGV, 2 do
  if not paused[queue] and not paused[queue .. '|' .. ARGV[i]] then
    handlers[#handlers + 1] = ARGV[i]
    left[ARGV[i]] = tonumber(ARGV[i + 1])
    wanted[ARGV[i]] = left[ARGV[i]] > 0
  end
end

local apart_for = call('HGET', P .. 'apart', worker)
if apart_for then
  local of, alone_with = string.match(apart_for, '^([^|]*)|(.*)$')
  local needed = alone_with ~= ''
  for _, member in ipairs(call('LRANGE', P .. 'suspects', 0, -1)) do
    local _, _, its_queue, handler = unpack_suspect(member)
    needed = needed or its_queue == of and not paused[of] and not paused[of .. '|' .. handler]
  end
  if needed then return { of } end
  call('HDEL', P .. 'apart', worker) -- another one took it
end

local function hand_out(job, prio, handler, key)
  room = room - 1
  left[handler] = left[handler] - 1
  jobs[#jobs + 1] = job
  from[#from + 1] = { prio, handler, key }
  records[#records + 1] = job
  records[#records + 1] = ticket .. '|' .. #jobs .. '|' .. prio .. '|' .. queue .. '|' .. handler .. '|' .. key
end

local function take_entry(prio, handler, entry)
  local key, job = '', string.sub(entry, 2)
  if string.sub(entry, 1, 1) == 'L' then
    key = job
    job = call('LINDEX', P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key, 0)
  end
  if job then hand_out(job, prio, handler, key) end
end

-- Whether the worker is apart from now on, with the first suspect of these handlers in hand if it held nothing else.
local function stand_apart()
  local found = false
  for _, member in ipairs(call('LRANGE', P .. 'suspects', 0, -1)) do
    local job, prio, of, handler, key = unpack_suspect(member)
    if of == queue and wanted[handler] then
      if found then
        ring(queue .. '|' .. handler) -- the next suspect is for the next idle worker
      elseif call('EXISTS', held) == 0 then
        call('LREM', P .. 'suspects', 1, member)
        hand_out(job, prio, handler, key)
        call('HSET', P .. 'apart', worker, queue .. '|' .. job)
        found = true
      elseif call('EXISTS', P .. 'apart') == 0 then
        call('HSET', P .. 'apart', worker, queue .. '|')
        return true
      else
        return false
      end
    end
  end
  return found
end

local apart = #handlers > 0 and stand_apart()
if apart then room = 0 end

for prio = 0, 2 do
  local found = true
  while found and room > 0 do
    found = false
    local share = math.ceil(room / #handlers)
    for _, handler in ipairs(handlers) do
      local n = math.min(share, room, left[handler])
      local entries = n > 0 and call('LPOP', P .. 'ready:' .. queue .. '|' .. handler .. '|' .. prio, n) or {}
      for _, entry in ipairs(entries or {}) do
        take_entry(prio, handler, entry)
        found = true
      end
    end
  end
end

-- Whoever fills up with work left over passes the wake-up on.
for _, handler in ipairs(handlers) do
  for prio = 0, 2 do
    if room == 0 or left[handler] == 0 then
      if call('EXISTS', P .. 'ready:' .. queue .. '|' .. handler .. '|' .. prio) == 1 then ring(queue .. '|' .. handler) end
    end
  end
end
ring_all()
if #jobs == 0 then return { apart and queue or '' } end

if lease > 0 then call('ZADD', P .. 'workers', 'NX', now_ms() + lease, worker) end
hset_all(held, records)

local answer = { apart and queue or '' }
for i, job in ipairs(jobs) do
  local n = #answer
  local lost = call('HGET', P .. 'lost', job) or '0'
  answer[n + 1] = job .. '|' .. from[i][1] .. '|' .. lost .. '|' .. from[i][2] .. '|' .. from[i][3]
  answer[n + 2] = call('HGET', P .. 'jobs', job) or ''
  answer[n + 3] = call('HGET', P .. 'notes', job) or ''
end
return answer
