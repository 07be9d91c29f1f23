"""What decides: when a child may run, when it must die, when a leadership may be given away.

Nothing in here does I/O, starts a thread, or reads a clock: facts and times come in, decisions go out.

- `lease`: the inequality everything rests on, as numbers.
- `custody`: what the guard does, the process that holds the child and the deadline.
- `term`: what the sidecar does, from joining the election to leaving it.
- `events`, `actions`: what can happen to a sidecar, and what it can be told to do.
- `record`: what members write into their znodes, and how what others wrote is read.
"""
