import {refusals} from './problem.ts'

/** Deeper than anything that is meant, and far from what would overflow a stack here or in Postgres. */
const DEEPEST = 100

/**
 * Reads a body. Keys that would reach into a prototype are refused, and so is what is nested without end.
 *
 * @throws {RefusedError} when it is not JSON that we take.
 */
export function parseJson(text: string): unknown {
  if (text.trim() === '') return undefined
  if (depthOf(text) > DEEPEST) throw refusals.invalid(`the body is nested deeper than ${DEEPEST} levels`)
  try {
    return JSON.parse(text, refusePrototype) as unknown
  } catch (error) {
    if (error instanceof SyntaxError) throw refusals.invalid('the body is not JSON', [], error)
    throw error
  }
}

function refusePrototype(key: string, value: unknown): unknown {
  if (key === '__proto__') throw refusals.invalid('the body has a key "__proto__"')
  return value
}

/** How deep brackets are nested outside of strings; counted before parsing, and once over the text, whatever it is. */
function depthOf(text: string): number {
  let depth = 0
  let deepest = 0
  let isString = false
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (isString) {
      if (character === '\\') i++
      else if (character === '"') isString = false
    } else if (character === '"') isString = true
    else if (character === '{' || character === '[') deepest = Math.max(deepest, ++depth)
    else if (character === '}' || character === ']') depth--
  }
  return deepest
}
