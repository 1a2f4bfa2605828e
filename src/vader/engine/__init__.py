"""The engine room: device, processes, and everything that a recipe names, built once."""
