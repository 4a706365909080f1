import assert from 'node:assert/strict'
import {test} from 'vitest'
import {RunProgress} from './run-progress.ts'

test('each table is told once per news, with the last row that was seen of it', () => {
  const progress = new RunProgress()
  progress.see('chat', 10)
  progress.see('user', 0)
  progress.see('chat', 20)
  progress.see('', 20)
  assert.deepEqual(progress.take(), [
    ['chat', 20],
    ['user', 0],
  ])
  assert.deepEqual(progress.take(), [])
})

test('a table that is read again does not go back, until another run begins', () => {
  const progress = new RunProgress()
  progress.see('chat', 20)
  progress.see('chat', 3)
  assert.deepEqual(progress.take(), [['chat', 20]])
  progress.see('chat', 5)
  assert.deepEqual(progress.take(), [])
  progress.see('chat', 21)
  progress.clear()
  assert.deepEqual(progress.take(), [])
  progress.see('chat', 2)
  assert.deepEqual(progress.take(), [['chat', 2]])
})
