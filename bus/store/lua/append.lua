#!lua
-- Number, log, announce and queue events of one log: every event whole, or not at all.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 bindings' version, 3 offered epoch, 4 cap, 5 ttl ms (either one with "=" before it: for the log to keep),
--       6 idempotency window ms,
--       7 and 8 which piece of a batch this is, and of how many,
--       9 where the posts begin, then for each route: queue, handler, priority;
--       then for each post: id, token, topics, body, due, number of jobs, then for each job: where its route stands, lane key
-- Answer {"ok", epoch, the last number before the first new post, then for each duplicate: its place in the batch, its position};
--          the new ones have the numbers that follow, in order, and the tokens they came with. "" and 0 where none is new
--        {"stale", version, HGETALL of the bindings}: nothing was written
--        {"closed", the log's last position}: nothing was written
--        {"behind"}: the piece before did not go in, so neither did this one
--
-- Everything that can refuse stands before the first write: Lua has no rollback. Every call costs about a microsecond or
-- two, and every table, string and function a part of one, so what the posts share is read and written once, and a post is
-- read where it stands.

-- All pieces of a batch were sent before the first had an answer. Where one is refused (memory is short, say, or the bindings
-- have changed), nothing of the next ones may pass it. The mark goes by the offered epoch, for every batch has one of its own.
local piece, pieces = tonumber(ARGV[7]), tonumber(ARGV[8])
if piece > 1 and tonumber(call('GET', P .. 'piece:' .. ARGV[3]) or 0) ~= piece - 1 then return { 'behind' } end
local function went_in(answer)
  if piece < pieces then
    call('SET', P .. 'piece:' .. ARGV[3], piece, 'PX', 60000)
  elseif pieces > 1 then
    call('DEL', P .. 'piece:' .. ARGV[3])
  end
  return answer
end

local log, first = ARGV[1], tonumber(ARGV[9])
local meta, stream, live = P .. 'top:' .. log, P .. 'log:' .. log, P .. 'live:' .. log
local counters = call('HMGET', P .. 'meta', 'v', 'j')
local top = call('HMGET', meta, 'e', 's', 'k', 'o', 'x', 'r', 'c', 'n', 'l')
local current, closed = counters[1] or '0', top[7]

-- Where nothing may be written, posts can be answered still if every one is a duplicate.
if current ~= ARGV[2] or closed then
  local answer, at, place = { 'ok', '', 0 }, first, 0
  while ARGV[at] do
    place = place + 1
    local known = call('GET', P .. 'seen:' .. ARGV[at])
    if not known and current ~= ARGV[2] then return { 'stale', current, call('HGETALL', P .. 'bindings') } end
    if not known then return { 'closed', top[1] .. '-' .. (top[2] or '0') .. '-' .. (top[3] or '0') } end
    answer[#answer + 1], answer[#answer + 2] = place, known
    at = at + 6 + 2 * ARGV[at + 5]
  end
  return went_in(answer)
end

-- What a log has for its own comes before its publishers' defaults.
local function own(limit)
  return string.sub(limit, 1, 1) == '=' and string.sub(limit, 2)
end
local own_cap, own_ttl = own(ARGV[4]), own(ARGV[5])
local cap, ttl = own_cap or top[8] or ARGV[4], tonumber(own_ttl or top[9] or ARGV[5])

local now = now_ms()
local time = string.format('%d', now) -- once: the server writes a number out with all that a double may have
local epoch, seq, token, oldest = top[1] or ARGV[3], tonumber(top[2] or 0), top[3] or '0', tonumber(top[4] or now)
local before, job = seq, tonumber(counters[2] or 0)
local answer, bodies, wanted = { 'ok', epoch, seq }, {}, {}

-- An id that stands in the batch twice finds itself. While a script runs nobody comes to listen: where the first was heard by
-- nobody on this node, the others need not be said.
local at, place, heard = first, 0, 1
while ARGV[at] do
  place = place + 1
  local mine, jobs = ARGV[at + 1], tonumber(ARGV[at + 5])
  local number = string.format('%d', seq + 1)
  local position = epoch .. '-' .. number .. '-' .. mine
  local known = call('SET', P .. 'seen:' .. ARGV[at], position, 'NX', 'GET', 'PX', ARGV[6])
  if known then
    answer[#answer + 1], answer[#answer + 2] = place, known
  else
    if seq == 0 then
      call('SADD', P .. 'logs', log)
      -- A log that lost its numbers starts again from 1; entries of its former life would refuse them.
      call('DEL', stream)
    end
    local topics, body = ARGV[at + 2], ARGV[at + 3]
    local kept, due = 'e' .. body, due_at(ARGV[at + 4], now)
    call('XADD', stream, 'MAXLEN', '=', cap, number .. '-0', 't', time, 'k', mine, 'p', token, 'c', topics, 'd', body)
    if heard > 0 then
      heard = call('PUBLISH', live, epoch .. '.' .. number .. ' ' .. mine .. ' ' .. token .. ' ' .. topics .. '\n' .. body)
    end
    seq, token = seq + 1, mine
    for each = at + 6, at + 4 + 2 * jobs, 2 do
      local route = tonumber(ARGV[each])
      job = job + 1
      local name = string.format('%d', job)
      bodies[#bodies + 1] = name
      bodies[#bodies + 1] = kept
      wanted[route] = (wanted[route] or 0) + 1
      place_job(ARGV[route + 2], ARGV[route], ARGV[route + 1], ARGV[each + 1], name, due, now, kept)
    end
  end
  at = at + 6 + 2 * jobs
end
if seq == before then return went_in(answer) end

if #bodies > 0 then
  hset_all(P .. 'jobs', bodies)
  call('HSET', P .. 'meta', 'j', bodies[#bodies - 1])
  for route, n in pairs(wanted) do
    call('HINCRBY', P .. 'pending', ARGV[route] .. '|' .. ARGV[route + 1], n)
  end
end

-- The cap was kept by XADD; the age is checked here (rarely) and at every read.
local budget = 1000 -- a long-idle log is cleared over several appends; reads leave out what is past its age anyway
while now - oldest > ttl and budget > 0 do
  budget = budget - 1
  local first = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local born = first and tonumber(first[2][2]) or now
  if now - born <= ttl then
    oldest = born
  else
    call('XDEL', stream, first[1])
  end
end

-- The life of the stream is prolonged once a second, by that second more.
local changes = { 's', string.format('%d', seq), 'k', token }
if not top[1] then changes[#changes + 1], changes[#changes + 2] = 'e', epoch end
if own_cap then changes[#changes + 1], changes[#changes + 2] = 'n', cap end
if own_ttl then changes[#changes + 1], changes[#changes + 2] = 'l', ttl end
if oldest ~= tonumber(top[4]) then changes[#changes + 1], changes[#changes + 2] = 'o', oldest end
if tonumber(top[5]) ~= ttl or now - tonumber(top[6] or 0) >= 1000 or before == 0 then
  changes[#changes + 1], changes[#changes + 2] = 'x', ttl
  changes[#changes + 1], changes[#changes + 2] = 'r', now
  call('PEXPIRE', stream, ttl + 1000)
end
call('HSET', meta, unpack(changes))
if before == 0 then call('PERSIST', meta) end -- a look may have come first
ring_all()
return went_in(answer)
