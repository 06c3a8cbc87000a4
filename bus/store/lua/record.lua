#!lua
-- Keep what a step of a job gave. The first one to say counts.
--
-- KEYS  1 prefix
-- ARGV  1 job, 2 step, 3 value, 4 how long from now, ms
-- Answer the value that is kept

local steps = P .. 'steps:' .. ARGV[1]
call('HSETNX', steps, ARGV[2], ARGV[3])
call('PEXPIRE', steps, ARGV[4])
return call('HGET', steps, ARGV[2])
