-- What HAProxy does with requests for proxied routes: it asks the application, and sends what it was told.
-- `site` stands above this (the question's fields, and what each route does to fields), and `answers.lua`.

local CONNECTION = {}
for name in ("connection content-length expect host transfer-encoding upgrade"):gmatch("%S+") do
    CONNECTION[name] = true
end
local HOP_BY_HOP = {}
for name in (site.hop_by_hop):gmatch("%S+") do
    HOP_BY_HOP[name] = true
end

local function each(fields, call)
    for name, values in pairs(fields) do
        for index = 0, #values do
            if values[index] ~= nil then call(name, values[index]) end
        end
    end
end

local function first(fields, name)
    local values = fields[name]
    return values and values[0]
end

-- The client's own fields, and who asks what.
local function question(txn, route)
    local fields, given = {}, txn.http:req_get_headers()
    each(given, function(name, value)
        if not CONNECTION[name] and not HOP_BY_HOP[name] then
            fields[name] = fields[name] or {}
            table.insert(fields[name], value)
        end
    end)
    fields["host"] = { first(given, "host") }
    fields["x-original-method"] = { txn.f:method() }
    fields["x-original-uri"] = { txn.sf:url() }
    fields["x-original-upgrade"] = { first(given, "upgrade") }
    fields["x-original-connection"] = { first(given, "connection") }
    fields["x-proxy-route"] = { route }
    fields["x-proxy-key"] = { site.key }
    fields["x-proxy-digest"] = { site.digest }
    return fields
end

-- The request becomes what the application said: each field that it did not name is gone.
local function obey(txn, told)
    local named = {}
    for name in (first(told, "x-proxy-fields") or ""):gmatch("[^, ]+") do
        named[name] = true
    end
    local http, settled = txn.http, site.routes[txn:get_var("txn.route")].settled
    each(http:req_get_headers(), function(name)
        if not CONNECTION[name] and (not named[name] or settled[name]) then http:req_del_header(name) end
    end)
    each(told, function(name, value)
        if settled[name] and named[name] then http:req_add_header(name, value) end
    end)
    http:req_set_header("Host", first(told, "x-proxy-host"))
    local upgrade = first(told, "x-proxy-upgrade")
    if upgrade then
        http:req_set_header("Upgrade", upgrade)
    else
        http:req_del_header("Upgrade")
        http:req_del_header("Connection")
    end
    http:req_set_uri(first(told, "x-proxy-target"))
end

-- "verified", "refused" or "unverified": nobody but who was verified gets anywhere.
core.register_action("ask", { "http-req" }, function(txn)
    local route = txn:get_var("txn.route")
    local answer = core.httpclient():get({ url = site.url, headers = question(txn, route), timeout = 60000 })
    local status = answer and answer.status
    if status == 200 and first(answer.headers, "x-proxy-target") then
        local scheme, host = first(txn.http:req_get_headers(), "x-forwarded-proto"), first(txn.http:req_get_headers(), "host")
        txn:set_priv({ told = answer.headers, public = scheme .. "://" .. (host or "") })
        obey(txn, answer.headers)
        txn:set_var("txn.outcome", "verified")
    elseif status == 401 or status == 403 then
        txn:set_var("txn.outcome", "refused")
    else
        core.Alert("the application did not answer for " .. route .. ": " .. tostring(status))
        txn:set_var("txn.outcome", "unverified")
    end
end)

local function replace(http, name, mapped)
    local values = http:res_get_headers()[name]
    if not values then return end
    http:res_del_header(name)
    for index = 0, #values do
        local value = mapped(values[index])
        if value then http:res_add_header(name, value) end
    end
end

local function rewrite(http, route, public)
    replace(http, "set-cookie", function(value)
        return value:find("=") and value:match("^[^;]*"):find("=") and cookie(value, route)
    end)
    for _, name in ipairs(route.locations and { "location", "content-location" } or {}) do
        replace(http, name, function(value) return location(value, route, public) end)
    end
    if route.private then
        local said = {}
        each({ x = http:res_get_headers()["cache-control"] or {} }, function(_, value) table.insert(said, value) end)
        http:res_set_header("Cache-Control", private(table.concat(said, ", ")))
    end
end

-- In the relay's order: what never comes down, rewriting, remove, set, add, default, and what the application puts.
core.register_action("answer", { "http-res" }, function(txn)
    local http, route, kept = txn.http, site.routes[txn:get_var("txn.route")], txn:get_priv()
    for _, options in pairs(http:res_get_headers()["connection"] or {}) do
        for name in options:gmatch("[^, ]+") do
            if not CONNECTION[name:lower()] then http:res_del_header(name) end
        end
        if not options:lower():find("upgrade") then http:res_del_header("connection") end
    end
    for name in pairs(http:res_get_headers()) do
        if HOP_BY_HOP[name] or route.hidden[name] or name:sub(1, 8) == "x-accel-" then http:res_del_header(name) end
    end
    rewrite(http, route, kept.public)
    for _, name in ipairs(route.removed) do http:res_del_header(name) end
    for _, field in ipairs(route.put) do http:res_add_header(field[1], field[2]) end
    local present = http:res_get_headers()
    for _, field in ipairs(route.default) do
        if not present[field[1]:lower()] then http:res_add_header(field[1], field[2]) end
    end
    each(kept.told, function(name, value)
        local own = name:match("^x%-proxy%-answer%-(.+)$")
        if own then
            if own ~= "vary" and own ~= "link" then http:res_del_header(own) end
            http:res_add_header(own, value)
        elseif name == "set-cookie" then
            http:res_add_header(name, value)
        end
    end)
    txn:set_var("txn.answered", true)
end)
