import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {commands, groups} from './commands.ts'
import {parse} from './parse.ts'

const screen = {columns: 80, hasColours: false}

test('no name is taken twice, and every group says what it is about', () => {
  const names = commands.map(({name}) => name)
  assert.equal(new Set(names).size, names.length)
  const used = names.filter(name => name.includes(' ')).map(name => name.split(' ')[0]!)
  assert.deepEqual([...new Set(used)].toSorted(), Object.keys(groups).toSorted())
})

for (const {name, about, load} of commands) {
  describe(`owsync ${name}`, () => {
    test('is described in one short sentence', () => {
      assert.match(about, /^[A-Z].{5,60}\.$/)
    })

    test('has help that fits a terminal of 80 columns', async () => {
      const {code, out} = await runCli(['help', ...name.split(' ')])
      assert.equal(code, 0)
      const tooWide = out.split('\n').filter(line => line.length > 80)
      assert.deepEqual(tooWide, [])
    })

    test('describes every option and positional in a sentence', async () => {
      const {options, positionals} = await load()
      for (const [key, spec] of Object.entries({...options, ...positionals})) {
        assert.match(spec.about, /^[A-Z].*\.$/, key)
      }
    })

    test('has examples that are read as they stand', async () => {
      const {examples = []} = await load()
      for (const example of examples) {
        const [line = ''] = example.split(/ [>|] /)
        const asked = await parse(line.split(' '), {commands, groups}, screen)
        assert.equal(asked.what, 'run', example)
      }
    })
  })
}
