"""Small classes with the structure of models that come as remote code: names, configs, inputs, ways to be called.

Each is written after what its public class does, and shares no line with it. `adapters` reads the adapters for them out
of the page that shows them to users.
"""
