-- What Envoy does behind `ext_authz`: the request becomes what the application said, and the answer what the relay
-- would have made of it.

local KEPT = { ["content-length"] = true, ["transfer-encoding"] = true }
local HOP_BY_HOP = {}
for name in (site.hop_by_hop):gmatch("%S+") do
    HOP_BY_HOP[name] = true
end
local OURS = "envoy.filters.http.lua"

local function refused(handle, status, told)
    handle:respond({ [":status"] = status, ["content-type"] = "text/plain" }, told)
end

-- Names and values of fields, each as often as it comes: fields can't be changed while they are walked through.
local function listed(headers)
    local found = {}
    for name, value in pairs(headers) do
        table.insert(found, { name, value })
    end
    return found
end

-- The lower-case names in a list of them.
local function names_in(text)
    local found = {}
    for name in (text or ""):gmatch("[^, \t]+") do
        found[name:lower()] = true
    end
    return found
end

function envoy_on_request(handle)
    local headers = handle:headers()
    local name, target = headers:get("x-proxy-route"), headers:get("x-proxy-target")
    local route = site.routes[name]
    if not route or not target then return refused(handle, "404", "not found") end
    local length = tonumber(headers:get("content-length") or "0")
    if route.most and length > route.most then return refused(handle, "413", "too large") end
    local kept = handle:streamInfo():dynamicMetadata()
    kept:set(OURS, "route", name)
    local scheme = headers:get("x-forwarded-proto") or "http"
    kept:set(OURS, "public", scheme .. "://" .. (headers:get("x-forwarded-host") or ""))
    local host, upgrade = headers:get("x-proxy-host"), headers:get("x-proxy-upgrade")
    local named = names_in(headers:get("x-proxy-fields"))
    local answers = {}
    for _, field in ipairs(listed(headers)) do
        local own = field[1]:match("^x%-proxy%-answer%-(.+)$")
        if own then table.insert(answers, own .. ":" .. field[2]) end
        if not named[field[1]] and not KEPT[field[1]] and field[1]:sub(1, 1) ~= ":" then headers:remove(field[1]) end
    end
    kept:set(OURS, "answers", table.concat(answers, "\n"))
    headers:replace(":path", target)
    headers:replace(":authority", host)
    if upgrade then
        headers:replace("upgrade", upgrade)
        headers:replace("connection", "upgrade")
    end
end

local function replace(headers, name, mapped)
    local values = {}
    for index = 0, headers:getNumValues(name) - 1 do
        table.insert(values, headers:getAtIndex(name, index))
    end
    headers:remove(name)
    for _, value in ipairs(values) do
        local made = mapped(value)
        if made then headers:add(name, made) end
    end
end

local function hidden(headers, route)
    local named = names_in(headers:get("connection"))
    for _, field in ipairs(listed(headers)) do
        local name = field[1]
        local never = HOP_BY_HOP[name] or route.hidden[name] or name:find("^x%-accel%-") or name:find("^x%-lighttpd%-send%-")
        if never or (named[name] and name ~= "upgrade") then headers:remove(name) end
    end
end

local function rewrite(headers, route, public)
    replace(headers, "set-cookie", function(value)
        return value:match("^[^;]*"):find("=") and cookie(value, route)
    end)
    for _, name in ipairs(route.locations and { "location", "content-location" } or {}) do
        replace(headers, name, function(value) return location(value, route, public) end)
    end
    if route.private then
        local said = {}
        replace(headers, "cache-control", function(value) table.insert(said, value) end)
        headers:add("cache-control", private(table.concat(said, ", ")))
    end
end

-- In the relay's order: what never comes down, rewriting, remove, set, add, default, and what the application puts.
function envoy_on_response(handle)
    local kept = handle:streamInfo():dynamicMetadata():get(OURS)
    local route = kept and site.routes[kept["route"]]
    if not route then return end
    local headers = handle:headers()
    hidden(headers, route)
    rewrite(headers, route, kept["public"])
    for _, name in ipairs(route.removed) do headers:remove(name) end
    for _, field in ipairs(route.put) do headers:add(field[1], field[2]) end
    for _, field in ipairs(route.default) do
        if not headers:get(field[1]) then headers:add(field[1], field[2]) end
    end
    for line in kept["answers"]:gmatch("[^\n]+") do
        local name, value = line:match("^([^:]+):(.*)$")
        if name ~= "vary" and name ~= "link" then headers:remove(name) end
        headers:add(name, value)
    end
end
