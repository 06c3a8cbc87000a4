#!lua flags=allow-oom
-- Ring a wake-up by hand. A worker's own bell ends after a while, for the worker may be gone already.
--
-- KEYS  1 prefix
-- ARGV  1 name
-- Answer nothing

ring(ARGV[1])
ring_all()
if string.sub(ARGV[1], 1, 1) == '@' then call('EXPIRE', P .. 'wake:' .. ARGV[1], 60) end
