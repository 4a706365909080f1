import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {columnsOf, progressLine, progressOn, tally, type ProgressView} from './progress.ts'

const view: ProgressView = {
  label: 'sync acme',
  table: 'message',
  rows: 250_000,
  totalRows: 1_000_000,
  bytes: 48_200_000,
}
const options = {elapsedMs: 5_000, width: 100, isUnicode: false}

describe('a line shows what fits, the least important left out first', () => {
  for (const [what, changes, expected] of [
    [
      'a wide terminal shows all',
      {},
      'sync acme  [#######---------------------]   25 %  message  250,000/1,000,000 rows  48.2 MB  50,000 rows/s',
    ],
    [
      '80 columns',
      {width: 79},
      'sync acme  [####-------------]   25 %  message  250,000/1,000,000 rows  48.2 MB',
    ],
    ['40 columns', {width: 39}, 'sync acme  [##--------]   25 %  message'],
    ['20 columns', {width: 19}, 'sync acme   25 %'],
    ['8 columns', {width: 7}, 'sync a.'],
    ['no rate within the first second', {elapsedMs: 999, width: 79}, /48\.2 MB$/],
    ['Unicode draws eighths', {isUnicode: true}, /^sync acme {2}███████▌░{22} {3}25 %/],
  ] as const) {
    test(what, () => {
      const line = progressLine(view, {...options, width: 105, ...changes})
      if (typeof expected === 'string') assert.equal(line, expected)
      else assert.match(line, expected)
    })
  }

  test('without a known total there is no bar', () => {
    const {totalRows, ...unknown} = view
    assert.ok(totalRows)
    assert.equal(progressLine(unknown, options), 'sync acme  message  250,000 rows  48.2 MB  50,000 rows/s')
  })

  test('what nobody counts is not shown as none, and one row is one row', () => {
    const line = progressLine({label: 'restore acme', table: 'chat', rows: 1}, {...options, elapsedMs: 1_000})
    assert.equal(line, 'restore acme  chat  1 row  1 row/s')
    assert.equal(progressLine({label: 'waiting for node-a'}, options), 'waiting for node-a')
  })

  test('a name that would move the cursor is made harmless', () => {
    assert.ok(!progressLine({...view, table: 'a\r\u001b[2Jb'}, options).includes('\u001b'))
  })

  test('no width is exceeded', () => {
    for (let width = 1; width < 130; width++) {
      for (const isUnicode of [true, false]) {
        assert.ok(progressLine(view, {...options, width, isUnicode}).length <= width, String(width))
      }
    }
  })

  for (const [rows, totalRows, percent] of [
    [0, 0, '100 %'],
    [0, 10, '0 %'],
    [999, 1_000, '99 %'],
    [12, 10, '100 %'],
  ] as const) {
    test(`${rows} of ${totalRows} rows is ${percent}`, () => {
      assert.match(progressLine({...view, rows, totalRows}, options), new RegExp(` ${percent} `))
    })
  }
})

describe('on a terminal', () => {
  test('the line is redrawn at most ten times a second and cleared at the end', () => {
    const {terminal, written} = fake({isTTY: true})
    let at = 0
    {
      using progress = progressOn(terminal, {LANG: 'C.UTF-8'}, () => at)
      for (; at < 1_000; at += 10) progress.update(view)
    }
    assert.equal(written.length, 11)
    assert.equal(written.at(-1), '\r\u001b[2K')
  })

  test('nothing is written when nothing happened', () => {
    const {terminal, written} = fake({isTTY: true})
    progressOn(terminal, {})[Symbol.dispose]()
    assert.deepEqual(written, [])
  })
})

for (const [columns, expected] of [
  [120, 120],
  [0, 80],
  [undefined, 80],
] as const) {
  test(`a terminal that says ${columns} columns has ${expected}`, () => {
    assert.equal(columnsOf(columns === undefined ? {} : {columns}), expected)
  })
}

for (const [what, isTTY, env] of [
  ['not a terminal', false, {}],
  ['a dumb terminal', true, {TERM: 'dumb'}],
] as const) {
  test(`${what} stays silent`, () => {
    const {terminal, written} = fake({isTTY})
    using progress = progressOn(terminal, env)
    progress.update(view)
    assert.deepEqual(written, [])
  })
}

function fake({isTTY}: {isTTY: boolean}) {
  const written: string[] = []
  return {written, terminal: {isTTY, columns: 80, write: (text: string) => written.push(text)}}
}

test('a tally adds up tables under way side by side, and does not go back when one is read again', () => {
  const views: ProgressView[] = []
  const progress = {
    isShown: true,
    update: (view: ProgressView) => views.push(view),
    [Symbol.dispose]: () => undefined,
  }
  const onProgress = tally(progress, 'sync acme', 30)
  for (const [table, rows] of [
    ['chat', 10],
    ['user', 5],
    ['chat', 20],
    ['', 25],
    ['chat', 3],
    ['user', 10],
  ] as const)
    onProgress(table, rows)
  assert.deepEqual(
    views.map(({rows}) => rows),
    [10, 15, 25, 25, 25, 30],
  )
  assert.ok(views.every(({label, totalRows}) => label === 'sync acme' && totalRows === 30))
})
