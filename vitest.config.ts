import {join} from 'node:path'
import {defineConfig} from 'vitest/config'

// One project per need: `unit` wants nothing, `pg` a real Postgres, `e2e` a browser or Docker, `torture` an hour.
const outside = ['**/node_modules/**', '**/dist/**']
const special = ['**/*.pg.test.ts', '**/*.e2e.test.ts', '**/*.docker.test.ts', '**/*.torture.test.ts']
const seconds = 1_000

// Where `./owsync` keeps it too: a process that a test starts need not compile everything anew.
const env = {NODE_COMPILE_CACHE: join(import.meta.dirname, 'node_modules/.cache/owsync')}

export default defineConfig({
  test: {
    teardownTimeout: 60 * seconds,
    projects: [
      {
        test: {
          name: 'unit',
          env,
          include: ['src/**/*.test.ts', 'test/**/*.test.ts'],
          exclude: [...outside, ...special],
          testTimeout: 30 * seconds,
          sequence: {groupOrder: 0},
        },
      },
      {
        test: {
          name: 'pg',
          env,
          include: ['**/*.pg.test.ts'],
          exclude: outside,
          globalSetup: ['test/postgres-server.ts'],
          testTimeout: 120 * seconds,
          hookTimeout: 180 * seconds,
          maxWorkers: 3, // one Postgres serves them all, often beside it on two cores; many of them wait
          sequence: {groupOrder: 1},
        },
      },
      {
        test: {
          name: 'e2e',
          env,
          include: ['**/*.e2e.test.ts', '**/*.docker.test.ts'],
          exclude: outside,
          testTimeout: 300 * seconds,
          hookTimeout: 300 * seconds,
          maxWorkers: 1, // browsers and containers are shared with the whole machine
          sequence: {groupOrder: 2},
        },
      },
      {
        test: {
          name: 'torture',
          env,
          include: ['**/*.torture.test.ts'],
          exclude: outside,
          globalSetup: ['test/postgres-server.ts'],
          testTimeout: 3_600 * seconds,
          hookTimeout: 300 * seconds,
          maxWorkers: 2,
          sequence: {groupOrder: 3},
        },
      },
    ],
  },
})
