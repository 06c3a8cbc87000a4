#!lua
-- Number, log, announce and queue events of one log: every event whole, or not at all.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 bindings' version, 3 offered epoch, 4 cap, 5 ttl ms, 6 idempotency window ms,
--       7 number of routes, then for each route: queue, handler, priority;
--       then for each post: id, token, topics, body, due, number of jobs, then for each job: route (from 1), lane key
-- Answer {"ok", for each post: position, 1 if a duplicate else 0}
--        {"stale", version, HGETALL of the bindings}: nothing was written
--
-- Everything that can refuse stands before the first write: Lua has no rollback.

local log, version, offered = ARGV[1], ARGV[2], ARGV[3]
local cap, ttl, window = tonumber(ARGV[4]), tonumber(ARGV[5]), math.max(1, tonumber(ARGV[6]))

local at = 8
local routes = {}
for i = 1, tonumber(ARGV[7]) do
  routes[i] = { ARGV[at], ARGV[at + 1], ARGV[at + 2] }
  at = at + 3
end

local posts, ids, jobs_wanted = {}, {}, 0
while ARGV[at] do
  local post = { id = ARGV[at], token = ARGV[at + 1], topics = ARGV[at + 2], body = ARGV[at + 3], due = ARGV[at + 4],
                 jobs = tonumber(ARGV[at + 5]), first = at + 6 }
  posts[#posts + 1] = post
  ids[#ids + 1] = P .. 'seen:' .. post.id
  jobs_wanted = jobs_wanted + post.jobs
  at = at + 6 + 2 * post.jobs
end

local seen = {}
in_chunks(ids, function(...)
  for _, position in ipairs(call('MGET', ...)) do seen[#seen + 1] = position end
end)
local fresh = false
for i in ipairs(posts) do fresh = fresh or not seen[i] end

if fresh and (call('HGET', P .. 'meta', 'v') or '0') ~= version then
  return { 'stale', call('HGET', P .. 'meta', 'v') or '0', call('HGETALL', P .. 'bindings') }
end

local now = now_ms()
local meta, stream = P .. 'top:' .. log, P .. 'log:' .. log
local top = call('HMGET', meta, 'e', 's', 'k', 'o')
local epoch, seq, token, oldest = top[1] or offered, tonumber(top[2] or 0), top[3] or '0', tonumber(top[4] or now)

local answer = { 'ok' }
local new_by_id = {}
if fresh then
  if seq == 0 then
    call('SADD', P .. 'logs', log)
    -- A log that lost its numbers starts again from 1; entries of its former life would refuse them.
    call('DEL', stream)
  end
end
local job = jobs_wanted > 0 and fresh and call('HINCRBY', P .. 'meta', 'j', jobs_wanted) - jobs_wanted or 0

for i, post in ipairs(posts) do
  local known = seen[i] or new_by_id[post.id]
  if known then
    answer[#answer + 1], answer[#answer + 2] = known, 1
  else
    seq = seq + 1
    local position = epoch .. '-' .. string.format('%d', seq) .. '-' .. post.token
    call('XADD', stream, 'MAXLEN', '=', cap, string.format('%d-0', seq),
      't', now, 'k', post.token, 'p', token, 'c', post.topics, 'd', post.body)
    call('SET', ids[i], position, 'PX', window)
    local due = due_at(post.due, now)
    for n = 0, post.jobs - 1 do
      local route = routes[tonumber(ARGV[post.first + 2 * n])]
      job = job + 1
      add_job(route[3], route[1], route[2], ARGV[post.first + 2 * n + 1], string.format('%d', job),
        'e' .. post.body, due, now)
    end
    call('PUBLISH', P .. 'live:' .. log,
      epoch .. '.' .. string.format('%d', seq) .. ' ' .. post.token .. ' ' .. token .. ' ' .. post.topics .. '\n' .. post.body)
    token = post.token
    new_by_id[post.id] = position
    answer[#answer + 1], answer[#answer + 2] = position, 0
  end
end

if fresh then
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
  call('HSET', meta, 'e', epoch, 's', string.format('%d', seq), 'k', token, 'o', oldest, 'x', ttl)
  call('PEXPIRE', stream, ttl)
  ring_all()
end
return answer
