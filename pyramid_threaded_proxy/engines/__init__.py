"""Configurations for servers that move the bytes in the relay's place, and ask the application first.

`site` is what all of them are made of. `support` is the table of what each can hold. Each engine is a module with one
function `files`, from a `FrontedSite` to the text of its files; `export` knows them by name, and judges a site by the
table before it has one written.
"""
