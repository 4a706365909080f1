// Loaded first into a sync worker: on SIGUSR2 it works for five seconds at one go, as SQLite does when it checks a large
// file, and its event loop does not turn meanwhile.

const WORKS_MS = 5_000

process.on('SIGUSR2', () => {
  for (const until = performance.now() + WORKS_MS; performance.now() < until;);
})
