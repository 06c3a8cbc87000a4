#!lua flags=allow-oom
-- Hand out fresh work to a worker that has a lease: what whoever waits is brought the moment that it is woken. It is small, for
-- all of it is new to the server's caches after an idle moment. Where there is more to think of, because there are suspects,
-- workers that stand apart, or handlers that are paused, nothing is handed out: the worker has to exchange.
--
-- KEYS  1 prefix
-- ARGV  1 worker, then for each take: ticket, limit, queue, number of handlers, then for each its name and how many at the most
-- Answer as of an exchange without settlements

local worker, at, answers = ARGV[1], 2, { {} }
-- Mostly one look tells that there is no trouble at all.
local quiet = call('EXISTS', P .. 'suspects', P .. 'apart', P .. 'paused', P .. 'lost') == 0
if quiet then any_lost = false end
local plain = quiet or call('EXISTS', P .. 'suspects', P .. 'apart', P .. 'paused') == 0
local entitled = plain and call('ZSCORE', P .. 'workers', worker)
while ARGV[at] do
  local first = at + 4
  local last = first + 2 * tonumber(ARGV[at + 3]) - 1
  local tray = new_tray(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], first, last, {})
  if entitled then
    take_fresh(tray)
    pass_rings_on(tray)
  end
  answers[#answers + 1] = answer_of(tray, P .. 'held:' .. worker)
  at = last + 1
end
ring_all()
return answers
