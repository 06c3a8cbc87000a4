#!lua flags=allow-oom
-- End deliveries, then hand out jobs of some handlers: in one step, so that what comes free is there to be taken, whatever
-- the server knows of our scripts. Draining must go on when the server is full, hence allow-oom.
--
-- A take is a pop: priority by priority, and within one, a turn each. A suspect goes to a worker that holds nothing, alone.
-- Where all are busy, one is set apart: it is handed nothing more, and when it holds nothing, the suspect.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 lease ms for a worker that has none yet (0: it is handed nothing), 3 number of settlements, then each:
--       job|ticket|verdict|delay ms|notes;
--       then for each take: ticket, limit, queue, number of handlers, then for each its name and how many of it at the most
-- Answer {for each settlement: 1, or 0 where the worker does not hold that job under that ticket},
--        then for each take {the queue for which the worker is set apart or "",
--                            then for each job: job|priority|lost|handler|key, body, notes}

local worker, lease = ARGV[1], tonumber(ARGV[2])
local held = P .. 'held:' .. worker
local now = now_ms()

-- 1. What has ended.

local done = {}

local function settle(job, verdict, delay_ms, notes, prio, queue, handler, key)
  call('HDEL', held, job)
  if verdict == 'ack' then
    done[#done + 1] = job
    call('HINCRBY', P .. 'pending', queue .. '|' .. handler, -1)
    leave_lane(prio, queue, handler, key)
    return
  end
  if verdict == 'back' then
    put_back(prio, queue, handler, key, job)
    return
  end
  call('HSET', P .. 'notes', job, notes)
  if verdict == 'dead' then
    bury(job, 'dead', prio, queue, handler, key, now)
    return
  end
  if verdict == 'retry' and key ~= '' then
    delay(now + delay_ms, 'L', prio, queue, handler, job, key)
  else
    leave_lane(prio, queue, handler, key)
    delay(now + delay_ms, 'J', prio, queue, handler, job, key)
  end
end

local function settle_all(first, last)
  local settled = {}
  for at = first, last do
    local job, ticket, verdict, delay_ms, notes = string.match(ARGV[at], '^([^|]*)|([^|]*)|(%a+)|(%-?%d+)|(.*)$')
    local record = call('HGET', held, job)
    local current, prio, queue, handler, key
    if record then current, prio, queue, handler, key = unpack_held(record) end
    if current == tonumber(ticket) then
      settle(job, verdict, tonumber(delay_ms), notes, prio, queue, handler, key)
      settled[#settled + 1] = 1
    else
      settled[#settled + 1] = 0
    end
  end
  if last >= first then
    forget(done)
    rejoin(worker)
  end
  return settled
end

-- 2. What is to be begun.

local paused = {}
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do paused[name] = true end

-- For which queue the worker stands apart already, if it does still.
local function apart_before()
  local apart_for = call('HGET', P .. 'apart', worker)
  if not apart_for then return end
  local of, alone_with = string.match(apart_for, '^([^|]*)|(.*)$')
  local needed = alone_with ~= ''
  for _, member in ipairs(call('LRANGE', P .. 'suspects', 0, -1)) do
    local _, _, its_queue, handler = unpack_suspect(member)
    needed = needed or its_queue == of and not paused[of] and not paused[of .. '|' .. handler]
  end
  if needed then return of end
  call('HDEL', P .. 'apart', worker) -- another one took it
end

-- Whether the worker is apart from now on, with the first suspect of the wanted handlers in hand if it held nothing else.
local function stand_apart(queue, wanted, hand_out)
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

local function take(ticket, room, queue, first, last)
  if lease == 0 and not call('ZSCORE', P .. 'workers', worker) then return { '' } end
  local of = apart_before()
  if of then return { of } end

  local handlers, wanted, left = {}, {}, {} -- left: how many more of each
  for at = first, last, 2 do
    local handler = ARGV[at]
    if not paused[queue] and not paused[queue .. '|' .. handler] then
      handlers[#handlers + 1] = handler
      left[handler] = tonumber(ARGV[at + 1])
      wanted[handler] = left[handler] > 0
    end
  end

  local jobs, from, records = {}, {}, {}
  local function hand_out(job, prio, handler, key)
    room = room - 1
    left[handler] = left[handler] - 1
    jobs[#jobs + 1] = job
    from[#from + 1] = { prio, handler, key }
    records[#records + 1] = job
    records[#records + 1] = ticket .. '|' .. #jobs .. '|' .. prio .. '|' .. queue .. '|' .. handler .. '|' .. key
  end

  local apart = #handlers > 0 and stand_apart(queue, wanted, hand_out)
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
          found = true
          local key, job = '', string.sub(entry, 2)
          if string.sub(entry, 1, 1) == 'L' then
            key = job
            job = call('LINDEX', P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key, 0)
          end
          if job then hand_out(job, prio, handler, key) end
        end
      end
    end
  end

  -- Whoever fills up with work left over passes the wake-up on; who does not has taken what the settling made ready.
  for _, handler in ipairs(handlers) do
    local name = queue .. '|' .. handler
    if room == 0 or left[handler] == 0 then
      for prio = 0, 2 do
        if call('EXISTS', P .. 'ready:' .. name .. '|' .. prio) == 1 then ring(name) end
      end
    elseif rung[name] and call('EXISTS', P .. 'suspects') == 0 then
      rung[name] = nil
    end
  end

  local answer = { apart and queue or '' }
  if #jobs == 0 then return answer end
  if lease > 0 then call('ZADD', P .. 'workers', 'NX', now + lease, worker) end
  hset_all(held, records)
  for i, job in ipairs(jobs) do
    local n = #answer
    local lost = call('HGET', P .. 'lost', job) or '0'
    answer[n + 1] = job .. '|' .. from[i][1] .. '|' .. lost .. '|' .. from[i][2] .. '|' .. from[i][3]
    answer[n + 2] = call('HGET', P .. 'jobs', job) or ''
    answer[n + 3] = call('HGET', P .. 'notes', job) or ''
  end
  return answer
end

local at = 4 + tonumber(ARGV[3])
local answers = { settle_all(4, at - 1) }
while ARGV[at] do
  local last = at + 3 + 2 * tonumber(ARGV[at + 3])
  answers[#answers + 1] = take(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], at + 4, last)
  at = last + 1
end
ring_all()
return answers
