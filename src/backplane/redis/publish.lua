-- Appends an item to a channel's log, once for each message id, keeps it as the newest of its key, and tells the
-- subscribers.
--
-- KEYS: 1 the stream  2 the log's hash  3 the message's dedupe key  4 the hash of newest values  the last: the life of what
--       is stored. All carry one hash tag.
-- ARGV: 1 payload  2 message id  3 this process's lineage  4 a fresh end for an epoch  5 most entries  6 most bytes
--       7 most milliseconds of an entry  8 of a log without a publication  9 of a message id
--       10 the channel to tell  11 the command to tell it with  12 the item's key, or ''  13 most keys  14 most bytes of
--       newest values
--       the last but one: what epochs have of the list of shards  the last: what this server has to say of it; both ''
--       where there is none
-- Gives: repeated (0 or 1), epoch, n, id; or 2 where the newest values would be too many, and nothing is stored.
--
-- The hash of newest values has what subscribers are told by each key, and by '', which is no key, how many bytes of keys,
-- payloads and message ids these have.
--
-- The hash has the epoch (e), the number (n), the id (i) and the bytes up to (b) the newest entry. Bytes are counted from
-- the log's birth and kept with each entry, so what is retained is a difference, and nothing goes astray when entries
-- expire. Numbers are written by string.format, since Lua writes large ones with an exponent.
-- The stream is appended to before the hash is written, so that a refusal leaves both as they were.
local shards = ARGV[#ARGV]
if shards ~= '' and redis.call('HGET', 'sg:shards', 'now') ~= shards then
  return redis.error_reply('SHARDS another list of shards is in force, or none')
end
-- A shard's epochs have the generation since which the channel is there. With another one it was elsewhere meanwhile, so
-- neither the log nor what is known of ids is of now.
local stamp = ARGV[#ARGV - 1]
local function is_of_now(epoch)
  return epoch and (string.match(epoch, '%-%d+%-') or '') == stamp
end
local known = redis.call('GET', KEYS[3])
if known then
  local e, n, id = string.match(known, '^(%S+) (%S+) (%S+)$')
  if is_of_now(e) then return {1, e, n, id} end
end
local log = redis.call('HMGET', KEYS[2], 'e', 'n', 'b')
local e, n, b = log[1], tonumber(log[2]), tonumber(log[3])
if not (is_of_now(e) and n and b) then
  -- Without its hash a stream has no number to go on with.
  redis.call('DEL', KEYS[1], KEYS[4])
  e, n, b = nil, 0, 0
end
if not e or string.sub(e, 1, #ARGV[3]) ~= ARGV[3] then
  local life = redis.call('GET', KEYS[#KEYS])
  if not life then
    life = ARGV[4]
    redis.call('SET', KEYS[#KEYS], life)
  end
  e = ARGV[3] .. ARGV[4] .. stamp .. life
end
local size = #ARGV[1] + #ARGV[2]
local values
if ARGV[12] ~= '' then
  local earlier = redis.call('HGET', KEYS[4], ARGV[12])
  local before = tonumber(redis.call('HGET', KEYS[4], '')) or 0
  values = before + size + #ARGV[12]
  if earlier then
    values = values - #ARGV[12] - (#earlier - string.find(earlier, '\n', 1, true))
  elseif redis.call('HLEN', KEYS[4]) > tonumber(ARGV[13]) then
    return {2}
  end
  if values > before and values > tonumber(ARGV[14]) then return {2} end
end
local n_text = string.format('%.0f', n + 1)
local b_text = string.format('%.0f', b + size)
local id = redis.call('XADD', KEYS[1], '*', 'n', n_text, 'e', e, 'm', ARGV[2], 'b', b_text, 'd', ARGV[1])
redis.call('HSET', KEYS[2], 'e', e, 'n', n_text, 'i', id, 'b', b_text)
redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', ARGV[5])
local now = string.match(id, '^(%d+)')
local oldest = tonumber(now) - tonumber(ARGV[7])
if oldest > 0 then
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-0', oldest))
end
-- What the first retained entry has before it is not retained. The newest alone is within the limit.
local kept = b + size - tonumber(ARGV[6])
while kept > 0 do
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not first or first[1] == id then break end
  local fields = first[2]
  if tonumber(fields[8]) - #fields[10] - #fields[6] >= kept then break end
  redis.call('XDEL', KEYS[1], first[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
redis.call('SET', KEYS[3], e .. ' ' .. n_text .. ' ' .. id, 'PX', ARGV[9])
local told = e .. ' ' .. n_text .. ' ' .. id .. ' ' .. #ARGV[2] .. '\n' .. ARGV[2] .. ARGV[1]
if values then
  redis.call('HSET', KEYS[4], ARGV[12], told, '', string.format('%.0f', values))
  redis.call('PEXPIRE', KEYS[4], ARGV[8])
end
redis.call(ARGV[11], ARGV[10], told)
return {0, e, n_text, id}
