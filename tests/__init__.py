"""The tests: a folder for each room of the package, `site` for whole applications, `support` for what they share."""
