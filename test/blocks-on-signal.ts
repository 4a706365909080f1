// Loaded first into a node: on SIGUSR2 its event loop stands still for five seconds, as under a garbage collection or a
// computation that nobody thought of.

process.on('SIGUSR2', () => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5_000)
  process.stderr.write('{"level":"info","msg":"the event loop was blocked"}\n')
})
