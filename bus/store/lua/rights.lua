#!lua flags=no-writes,allow-oom
-- Which of some commands this user may not use. Asks the server's access list and does none of them.
--
-- KEYS  1 prefix
-- ARGV  commands with their arguments, separated by spaces; $key is a key of the namespace, $channel a channel of it
-- Answer the names of those that are denied

local denied = {}
for _, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do
    words[#words + 1] = word == '$key' and P .. 'meta' or word == '$channel' and P .. 'live:main' or word
  end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if known and not allowed then denied[#denied + 1] = words[1] end
end
return denied
