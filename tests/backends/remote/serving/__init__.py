"""What server.py beside this runs: a small service of nnsight 0.8.1's remote protocol, as strict as the real one."""
