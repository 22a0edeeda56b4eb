-- Changes what a server says of the list of shards, if it says what it said.
--
-- KEYS: 1 the key of that
-- ARGV: 1 what it said, or '' where it said nothing  2 what it says now  3 the record of it
-- Gives: 1 if it was changed.
if (redis.call('HGET', KEYS[1], 'now') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'now', ARGV[2], 'record', ARGV[3])
return 1
