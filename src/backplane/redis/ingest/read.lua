-- Reads a part of a stream that somebody else fills. Writes nothing.
--
-- KEYS: 1 the stream
-- ARGV: 1 the id to read behind, or '' for no entries  2 most entries  3 most bytes of data
--       4 the field with the message's id  5 the field with its data
-- Gives: how many entries were ever added, or -1 where Redis does not count them (before 7.0); how many there are; the id
-- of the newest; whether the entry of ARGV 1 is there; whether there is more behind these entries; the entries: id, message
-- id or false, data or false.
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0, '0-0', 0, 0, {}} end
local info, added, length, newest = redis.call('XINFO', 'STREAM', KEYS[1]), -1, 0, '0-0'
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then added = info[i + 1] end
  if info[i] == 'length' then length = info[i + 1] end
  if info[i] == 'last-generated-id' then newest = info[i + 1] end
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
-- Where all entries are gone, the newest id that was given out: what comes has a higher one.
if last then newest = last[1] end
if ARGV[1] == '' then return {added, length, newest, 0, 0, {}} end
local there = #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
local limit, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local entries, from = {}, '(' .. ARGV[1]
while true do
  local part = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 50)
  for _, entry in ipairs(part) do
    local fields, id, data = entry[2], false, false
    for i = 1, #fields, 2 do
      if fields[i] == ARGV[4] then id = fields[i + 1] end
      if fields[i] == ARGV[5] then data = fields[i + 1] end
    end
    bytes = bytes - (data and #data or 0)
    if #entries > 0 and (#entries >= limit or bytes < 0) then return {added, length, newest, there, 1, entries} end
    entries[#entries + 1] = {entry[1], id, data}
  end
  if #part < 50 then return {added, length, newest, there, 0, entries} end
  from = '(' .. part[#part][1]
end
