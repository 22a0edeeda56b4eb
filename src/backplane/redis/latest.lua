-- Reads the newest values of a channel, whole. Writes nothing.
--
-- KEYS: 1 the log's hash  2 the hash of newest values  3 the life of what is stored
-- ARGV: 1 most keys  2 most bytes of keys, payloads and message ids  3 what epochs have of the list of shards, or ''
-- Gives: the hash's epoch, n and id, or ARGV 3 and the life, false, false where there is no log; what subscribers were told of each
-- key's newest entry, in no order; or, where there are more than that, -1 in their place.
local log = redis.call('HMGET', KEYS[1], 'e', 'n', 'i')
-- Of a log that died nothing is left, and what was written before the channel was elsewhere is no part of its log.
if not (log[1] and log[2] and log[3]) or (string.match(log[1], '%-%d+%-') or '') ~= ARGV[3] then
  local life = redis.call('GET', KEYS[3])
  return {life and ARGV[3] .. life, false, false, {}}
end
local bytes = tonumber(redis.call('HGET', KEYS[2], '')) or 0
if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[1]) + 1 or bytes > tonumber(ARGV[2]) then
  return {log[1], log[2], log[3], -1}
end
local fields = redis.call('HGETALL', KEYS[2])
local values = {}
for at = 1, #fields, 2 do
  if fields[at] ~= '' then values[#values + 1] = fields[at + 1] end
end
return {log[1], log[2], log[3], values}
