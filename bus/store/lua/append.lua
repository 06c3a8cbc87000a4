#!lua
-- Number, log, announce and queue events of one log: every event whole, or not at all.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 bindings' version, 3 offered epoch, 4 cap, 5 ttl ms (either one with "=" before it: for the log to keep),
--       6 idempotency window ms,
--       7 number of routes, then for each route: queue, handler, priority;
--       then for each post: id, token, topics, body, due, number of jobs, then for each job: route (from 1), lane key
-- Answer {"ok", for each post: position, 1 if a duplicate else 0}
--        {"stale", version, HGETALL of the bindings}: nothing was written
--        {"closed", the log's last position}: nothing was written
--
-- Everything that can refuse stands before the first write: Lua has no rollback. Every call costs about a microsecond, so
-- what the posts share is written once.

local log, version, offered = ARGV[1], ARGV[2], ARGV[3]
local window = math.max(1, tonumber(ARGV[6]))

local at = 8
local routes = {}
for i = 1, tonumber(ARGV[7]) do
  routes[i] = { ARGV[at], ARGV[at + 1], ARGV[at + 2] }
  at = at + 3
end

local posts = {}
while ARGV[at] do
  local post = { id = ARGV[at], token = ARGV[at + 1], topics = ARGV[at + 2], body = ARGV[at + 3], due = ARGV[at + 4],
                 jobs = tonumber(ARGV[at + 5]), first = at + 6 }
  posts[#posts + 1] = post
  at = at + 6 + 2 * post.jobs
end

local answer = { 'ok' }

-- Where nothing may be written, posts can be answered still if every one is a duplicate.
local function if_all_are_known()
  for _, post in ipairs(posts) do
    local known = call('GET', P .. 'seen:' .. post.id)
    if not known then return nil end
    answer[#answer + 1], answer[#answer + 2] = known, 1
  end
  return answer
end

local current = call('HGET', P .. 'meta', 'v') or '0'
if current ~= version then
  return if_all_are_known() or { 'stale', current, call('HGETALL', P .. 'bindings') }
end

local now = now_ms()
local meta, stream = P .. 'top:' .. log, P .. 'log:' .. log
local top = call('HMGET', meta, 'e', 's', 'k', 'o', 'x', 'r', 'c', 'n', 'l')
local epoch, seq, token, oldest = top[1] or offered, tonumber(top[2] or 0), top[3] or '0', tonumber(top[4] or now)
if top[7] then return if_all_are_known() or { 'closed', string.format('%s-%d-%s', epoch, seq, token) } end

-- What a log has for its own comes before its publishers' defaults.
local function limit(given, own)
  if string.byte(given) == 61 then return tonumber(string.sub(given, 2)) end
  return tonumber(own or given)
end
local cap, ttl = limit(ARGV[4], top[8]), limit(ARGV[5], top[9])

-- Number what is new. An id that stands in the batch twice finds itself.
local fresh, jobs = {}, 0
local before = seq
for _, post in ipairs(posts) do
  post.number = string.format('%d', seq + 1)
  local position = epoch .. '-' .. post.number .. '-' .. post.token
  local known = call('SET', P .. 'seen:' .. post.id, position, 'NX', 'GET', 'PX', window)
  if not known then
    seq = seq + 1
    fresh[#fresh + 1] = post
    jobs = jobs + post.jobs
  end
  answer[#answer + 1], answer[#answer + 2] = known or position, known and 1 or 0
end
if #fresh == 0 then return answer end

if before == 0 then
  call('SADD', P .. 'logs', log)
  -- A log that lost its numbers starts again from 1; entries of its former life would refuse them.
  call('DEL', stream)
end

local job = jobs > 0 and call('HINCRBY', P .. 'meta', 'j', jobs) - jobs
local bodies, wanted = {}, {}
for _, post in ipairs(fresh) do
  call('XADD', stream, 'MAXLEN', '=', cap, post.number .. '-0',
    't', now, 'k', post.token, 'p', token, 'c', post.topics, 'd', post.body)
  local due = due_at(post.due, now)
  for at_job = post.first, post.first + 2 * post.jobs - 1, 2 do
    local number = tonumber(ARGV[at_job])
    local route = routes[number]
    job = job + 1
    local name = string.format('%d', job)
    bodies[#bodies + 1] = name
    bodies[#bodies + 1] = 'e' .. post.body
    wanted[number] = (wanted[number] or 0) + 1
    place_job(route[3], route[1], route[2], ARGV[at_job + 1], name, due, now)
  end
  call('PUBLISH', P .. 'live:' .. log,
    epoch .. '.' .. post.number .. ' ' .. post.token .. ' ' .. token .. ' ' .. post.topics .. '\n' .. post.body)
  token = post.token
end
if jobs > 0 then
  in_chunks(bodies, function(...) call('HSET', P .. 'jobs', ...) end)
  for number, n in pairs(wanted) do
    call('HINCRBY', P .. 'pending', routes[number][1] .. '|' .. routes[number][2], n)
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
if string.byte(ARGV[4]) == 61 then changes[#changes + 1], changes[#changes + 2] = 'n', cap end
if string.byte(ARGV[5]) == 61 then changes[#changes + 1], changes[#changes + 2] = 'l', ttl end
if oldest ~= tonumber(top[4]) then changes[#changes + 1], changes[#changes + 2] = 'o', oldest end
if tonumber(top[5]) ~= ttl or now - tonumber(top[6] or 0) >= 1000 or before == 0 then
  changes[#changes + 1], changes[#changes + 2] = 'x', ttl
  changes[#changes + 1], changes[#changes + 2] = 'r', now
  call('PEXPIRE', stream, ttl + 1000)
end
call('HSET', meta, unpack(changes))
ring_all()
return answer
