import assert from 'node:assert/strict'
import {test} from 'vitest'
import {emptyDatabase} from '../../test/database.ts'

test('a statement gives its rows', async () => {
  await using db = await emptyDatabase()
  const [row] = await db<{n: bigint; t: string}>`select ${2n ** 62n}::int8 as n, ${"a'b"}::text as t`
  assert.deepEqual(row, {n: 2n ** 62n, t: "a'b"})
})
