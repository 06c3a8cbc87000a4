#!lua flags=allow-oom
-- End deliveries, then hand out jobs of some handlers: in one step, so that what comes free is there to be taken, whatever
-- the server knows of our scripts. Draining must go on when the server is full, hence allow-oom.
--
-- A take is a pop: priority by priority, and within one, a turn each. Of suspects a worker has so many at a time as may be lost
-- together, beside fresh work, with which they take turns. One that is to be alone goes to a worker that holds nothing, neither
-- in our books nor in its own: what was struck out of ours may be running still. Where all are busy, one is set apart: it is
-- handed nothing more, and when it holds nothing, the suspect. If it makes room in vain, for something there does not end, it
-- is another one's turn after a while.
--
-- KEYS  1 prefix
-- ARGV  1 worker, 2 lease ms for a worker that has none yet, 3 how many suspects are taken together
--       that lost 2, 3, or more leases, separated by spaces, 4 how long a worker makes room for one at first (ms), 5 number
--       of settlements, then each: job|ticket|verdict|delay ms|notes;
--       then for each take: ticket, limit, queue, whether the worker holds nothing by its own books (1 or 0), number of
--       handlers, then for each its name and how many of it at the most
-- Answer {for each settlement: 1, or 0 where the worker does not hold that job under that ticket},
--        then for each take {queue|handler for whose suspect the worker is set apart or "",
--                            then for each job: job|priority|lost|handler|key, body, notes}

local worker, lease = ARGV[1], tonumber(ARGV[2])
local held = P .. 'held:' .. worker

local clock
local function now() -- mostly nobody asks
  clock = clock or now_ms()
  return clock
end

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
  call('HSET', P .. 'jobs', job .. 'n', notes)
  if verdict == 'dead' then
    bury(job, 'dead', prio, queue, handler, key, now())
    return
  end
  if verdict == 'retry' and key ~= '' then
    delay(now() + delay_ms, 'L', prio, queue, handler, job, key)
  else
    leave_lane(prio, queue, handler, key)
    delay(now() + delay_ms, 'J', prio, queue, handler, job, key)
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
      -- Another suspect may come in its place.
      local name = queue .. '|' .. handler
      if suspicion(job) and call('HEXISTS', P .. 'suspects', name) == 1 then ring(name) end
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

-- For which handler's suspect the worker stands apart already, if it does still.
local function apart_before()
  local entry = call('HGET', P .. 'apart', worker)
  if not entry then return end
  local name, queue, works, since, patience = unpack_apart(entry)
  if works then return name end
  local waiting = call('EXISTS', P .. 'suspects:' .. name .. '|' .. MOST_SUSPECT) == 1 and not paused[queue] and not paused[name]
  if not waiting then call('HDEL', P .. 'apart', worker) end -- another one took it
  return waiting and now() < since + patience and name
end

-- How many suspects the worker has in hand, and how many leases these lost: only such that lost as many are ever together.
local function suspects_in_hand()
  local count, kind = 0, nil
  for _, lost in ipairs(values_of('lost', call('HKEYS', held))) do
    if lost and tonumber(lost) >= SUSPECT then count, kind = count + 1, math.min(tonumber(lost), MOST_SUSPECT) end
  end
  return count, kind
end

-- For how long the worker may be set apart to make room, one at a time. Who has done so in vain is left in peace for as long
-- again, and then tries for twice as long, up to ten times as long as at first.
local function patience_for_room()
  local patience, aparts = tonumber(ARGV[4]), call('HGETALL', P .. 'apart')
  for i = 1, #aparts, 2 do
    local _, _, _, since, its = unpack_apart(aparts[i + 1])
    if aparts[i] == worker then patience, its = math.min(2 * its, 10 * patience), 2 * its end
    if now() < since + its then return end
  end
  return patience
end

-- Answers how many there were, of those that lost so many leases.
local function hand_out_suspects(tray, name, handler, lost, n)
  local entries = n > 0 and call('LPOP', P .. 'suspects:' .. name .. '|' .. lost, n) or {}
  for _, entry in ipairs(entries) do
    local prio, job, key = unpack_suspect(entry)
    hand_out(tray, job, prio, handler, key)
  end
  return #entries
end

-- So many as the worker may have at a time beside fresh work: one more kind, or more of the kind that it has.
local function hand_out_company(tray, name, handler)
  if not tray.suspects then tray.suspects, tray.kind = suspects_in_hand() end
  local lost = SUSPECT
  for company in string.gmatch(ARGV[3], '%d+') do
    if lost < MOST_SUSPECT and (tray.kind or lost) == lost then
      local n = math.min(tray.room, tray.left[handler], tonumber(company) - tray.suspects)
      local came = hand_out_suspects(tray, name, handler, lost, n)
      if came > 0 then
        tray.suspects, tray.kind = tray.suspects + came, lost
        return true
      end
    end
    lost = lost + 1
  end
end

-- The one that is to be alone, where the worker holds nothing; otherwise the worker stands apart for it from now on, if it may.
local function hand_out_alone(tray, name, handler)
  if call('EXISTS', P .. 'suspects:' .. name .. '|' .. MOST_SUSPECT) == 0 then return end
  tray.alone = #tray.jobs == 0 and tray.idle and call('EXISTS', held) == 0
  local patience = tray.alone and tonumber(ARGV[4]) or patience_for_room()
  if not patience then return end
  tray.apart = name
  call('HSET', P .. 'apart', worker, name .. '|' .. (tray.alone and '+' or '') .. string.format('|%d|%d', now(), patience))
  return tray.alone and hand_out_suspects(tray, name, handler, MOST_SUSPECT, 1) > 0
end

-- What the worker takes work for, as its last beat told.
local function served()
  local names = {}
  for name in string.gmatch(call('HGET', P .. 'serves', worker) or '', '%S+') do
    if not paused[name] and not paused[string.match(name, '^[^|]*')] then names[#names + 1] = name end
  end
  return names
end

local function any_fresh(names)
  for _, name in ipairs(names) do
    if any_ready(name) then return true end
  end
end

-- Whether a suspect that must be alone, but whose turn it is not, has to wait: for fresh work of any handler that the worker
-- serves, or for such a suspect of another one. This worker will ask for them, if nobody else does before.
local function must_wait(name)
  local names = served()
  for _, other in ipairs(names) do
    local row = P .. 'suspects:' .. other .. '|' .. MOST_SUSPECT
    if other ~= name and call('HGET', P .. 'suspects', other) == 's' and call('EXISTS', row) == 1 then return true end
  end
  return any_fresh(names)
end

local function give_turn(name)
  call('HSET', P .. 'suspects', name, 's')
  ring(name)
end

-- Suspects were handed out. Where there are more, the next turn is fresh work's, or else those of other handlers.
local function end_suspects_turn(tray, name)
  local more = false
  for lost = SUSPECT, MOST_SUSPECT do
    more = more or call('EXISTS', P .. 'suspects:' .. name .. '|' .. lost) == 1
  end
  if more then
    call('HSET', P .. 'suspects', name, 'f')
    ring(name)
  else
    call('HDEL', P .. 'suspects', name)
  end
  local names = tray.alone and served() or {}
  if not any_fresh(names) then
    for _, other in ipairs(names) do
      if other ~= name and call('HGET', P .. 'suspects', other) == 'f' then give_turn(other) end
    end
  end
end

-- Those handlers' suspects whose turn it is, or that have no fresh work beside them.
local function take_suspects(tray)
  local fresh = false
  for _, handler in ipairs(tray.handlers) do fresh = fresh or any_ready(tray.queue .. '|' .. handler) end
  for _, handler in ipairs(tray.handlers) do
    local name = tray.queue .. '|' .. handler
    local turn = not tray.apart and tray.room > 0 and tray.left[handler] > 0 and call('HGET', P .. 'suspects', name)
    if turn and (turn == 's' or not fresh) then
      local came = hand_out_company(tray, name, handler)
      if not came and (turn == 's' or not must_wait(name)) then came = hand_out_alone(tray, name, handler) end
      if came then end_suspects_turn(tray, name) end
    end
  end
  if tray.apart then tray.room = 0 end
end

-- Fresh work was handed out: where it was its turn, it is the turn of the suspects that the worker might have taken instead.
local function end_fresh_turn(queue)
  local mine, turns = {}, call('HGETALL', P .. 'suspects')
  for _, name in ipairs(served()) do mine[name] = true end
  for i = 1, #turns, 2 do
    local name = turns[i]
    if turns[i + 1] == 'f' and (mine[name] or string.match(name, '^[^|]*') == queue) then give_turn(name) end
  end
end

-- Where one was not handed out after all, or there are more, they are for others.
local function pass_suspects_on(tray)
  for _, handler in ipairs(tray.handlers) do
    local name = tray.queue .. '|' .. handler
    if tray.apart and call('HEXISTS', P .. 'suspects', name) == 1 then ring(name) end
  end
end

local function take(ticket, room, queue, idle, first, last)
  if idle then rejoin(worker) end
  local of = apart_before()
  if of then return { of } end
  local tray = new_tray(ticket, room, queue, first, last, paused)
  tray.idle = idle
  local suspects = call('EXISTS', P .. 'suspects') == 1
  if suspects then take_suspects(tray) end
  if take_fresh(tray) and suspects then end_fresh_turn(queue) end
  pass_rings_on(tray)
  if tray.alone then pass_suspects_on(tray) end
  if #tray.jobs > 0 or tray.apart then call('ZADD', P .. 'workers', 'NX', now() + lease, worker) end
  return answer_of(tray, held)
end

local at = 6 + tonumber(ARGV[5])
local answers = { settle_all(6, at - 1) }
while ARGV[at] do
  local last = at + 4 + 2 * tonumber(ARGV[at + 4])
  answers[#answers + 1] = take(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3] == '1', at + 5, last)
  at = last + 1
end
ring_all()
return answers
