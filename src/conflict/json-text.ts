// JSON that can be edited without touching what is not meant: every value knows where it stands in the text, and
// nothing goes through a JavaScript number. Python's NaN and Infinity are taken, since Python's json writes them.
// Nothing here recurses: 20,000 levels are met in real files.

export type JsonKind = 'object' | 'array' | 'string' | 'number' | 'literal'

/** A value in a text: `text.slice(start, end)`. */
export type JsonNode = {
  readonly text: string
  readonly kind: JsonKind
  readonly start: number
  readonly end: number
  /** Members in the order of the text, duplicates included; empty unless `kind` is `object`. */
  readonly members: readonly JsonMember[]
  /** Items in the order of the text; empty unless `kind` is `array`. */
  readonly items: readonly JsonNode[]
}

/** `start` is where the name begins. */
export type JsonMember = {readonly name: string; readonly start: number; readonly value: JsonNode}

/** @returns the document's value, or `undefined` when the text is not JSON. */
export function parseJson(text: string): JsonNode | undefined {
  const first = skipBlanks(text, 0)
  const root = beginValue(text, first)
  if (!root) return undefined
  const open: Open[] = isContainer(root) ? [root] : []
  let at = root.end
  for (let current = open.at(-1); current; current = open.at(-1)) {
    const step = stepIn(text, at, current)
    if (!step) return undefined
    at = step.at
    if (step.value && isContainer(step.value)) open.push(step.value)
    if (step.isClosed) open.pop()
  }
  return skipBlanks(text, at) === text.length ? root : undefined
}

/** The text of a value, exactly as it stands. */
export function textOf({text, start, end}: JsonNode): string {
  return text.slice(start, end)
}

/** True for JSON's own null. */
export function isNull(node: JsonNode): boolean {
  return node.kind === 'literal' && node.end - node.start === 4 && node.text[node.start] === 'n'
}

/** The members that count: of several with one name the last, as every reader takes it. */
export function membersByName(node: JsonNode): Map<string, JsonMember> {
  return new Map(node.members.map(member => [member.name, member]))
}

/** @returns the value at a path of member names, or `undefined`. */
export function nodeAt(node: JsonNode, path: readonly string[]): JsonNode | undefined {
  let found: JsonNode | undefined = node
  for (const name of path) found = found?.members.findLast(member => member.name === name)?.value
  return found
}

/** True when both say the same, however it is spelled: escapes, blanks, `1.0` or `1`, the order of members. */
export function isSame(one: JsonNode, other: JsonNode): boolean {
  if (textOf(one) === textOf(other)) return true
  const pairs: [JsonNode, JsonNode][] = [[one, other]]
  for (let pair = pairs.pop(); pair; pair = pairs.pop()) {
    const [a, b] = pair
    if (a.kind !== b.kind) return false
    if (a.kind === 'object') {
      const [mine, others] = [membersByName(a), membersByName(b)]
      if (mine.size !== others.size) return false
      for (const [name, {value}] of mine) {
        const match = others.get(name)
        if (!match) return false
        pairs.push([value, match.value])
      }
    } else if (a.kind === 'array') {
      if (a.items.length !== b.items.length) return false
      for (const [i, item] of a.items.entries()) pairs.push([item, b.items[i] as JsonNode])
    } else if (scalarText(a) !== scalarText(b)) {
      return false
    }
  }
  return true
}

/** A text that two values share exactly when {@link isSame} holds. */
export function canonicalJson(node: JsonNode): string {
  const out: string[] = []
  const left: (JsonNode | string)[] = [node]
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    if (typeof next === 'string') {
      out.push(next)
      continue
    }
    switch (next.kind) {
      case 'object': {
        out.push('{')
        left.push('}')
        const members = [...membersByName(next)].sort(([a], [b]) => (a < b ? 1 : -1))
        for (const [name, {value}] of members) left.push(',', value, `${JSON.stringify(name)}:`)
        break
      }
      case 'array':
        out.push('[')
        left.push(']')
        for (const item of next.items.toReversed()) left.push(',', item)
        break
      case 'string':
      case 'number':
      case 'literal':
        out.push(scalarText(next))
    }
  }
  return out.join('')
}

/** What a JSON string says. */
export function stringOf(node: JsonNode): string {
  return decoded(node.text, node.start, node.end)
}

/** @returns less than, equal to or greater than 0; `undefined` when the values have no order between them. */
export function compareJson(one: JsonNode, other: JsonNode): number | undefined {
  if (one.kind === 'string' && other.kind === 'string') {
    return Buffer.compare(Buffer.from(stringOf(one)), Buffer.from(stringOf(other)))
  }
  const [a, b] = [one, other].map(node => (node.kind === 'number' ? decimalOf(textOf(node)) : undefined))
  return a && b ? compareDecimals(a, b) : undefined
}

type Open = {
  readonly text: string
  readonly kind: JsonKind
  readonly start: number
  end: number
  readonly members: JsonMember[]
  readonly items: JsonNode[]
}

type Step = {readonly at: number; readonly value?: Open; readonly isClosed?: true}

/** Reads the next member or item of an open container, or its end. */
function stepIn(text: string, from: number, container: Open): Step | undefined {
  const isObject = container.kind === 'object'
  const isEmpty = (isObject ? container.members : container.items).length === 0
  let at = skipBlanks(text, from)
  if (text[at] === (isObject ? '}' : ']')) {
    container.end = at + 1
    return {at: at + 1, isClosed: true}
  }
  if (!isEmpty) {
    if (text[at] !== ',') return undefined
    at = skipBlanks(text, at + 1)
  }
  if (!isObject) {
    const value = beginValue(text, at)
    if (value) container.items.push(value)
    return value && {at: value.end, value}
  }
  const nameEnd = text[at] === '"' ? endOfString(text, at) : undefined
  if (nameEnd === undefined) return undefined
  const colon = skipBlanks(text, nameEnd)
  if (text[colon] !== ':') return undefined
  const value = beginValue(text, skipBlanks(text, colon + 1))
  if (value) container.members.push({name: decoded(text, at, nameEnd), start: at, value})
  return value && {at: value.end, value}
}

/** A scalar whole, or a container up to and including its opening bracket. */
function beginValue(text: string, start: number): Open | undefined {
  const made = (kind: JsonKind, end: number | undefined): Open | undefined =>
    end === undefined ? undefined : {text, kind, start, end, members: [], items: []}
  const first = text[start]
  if (first === '{') return made('object', start + 1)
  if (first === '[') return made('array', start + 1)
  if (first === '"') return made('string', endOfString(text, start))
  const word = words.find(word => text.startsWith(word, start))
  return word === undefined
    ? made('number', endOfNumber(text, start))
    : made(numberWords.has(word) ? 'number' : 'literal', start + word.length)
}

const numberWords: ReadonlySet<string> = new Set(['NaN', 'Infinity', '-Infinity'])
const words = ['true', 'false', 'null', ...numberWords]

function isContainer({kind}: JsonNode): boolean {
  return kind === 'object' || kind === 'array'
}

function skipBlanks(text: string, from: number): number {
  let at = from
  for (let code = text.charCodeAt(at); isBlank(code); code = text.charCodeAt(at)) at++
  return at
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09
}

// Regular expressions go through long strings several times faster than a loop over the characters; two of them, since
// a repeated group would need memory for each escape.
const plain = /[^"\\\x00-\x1f]*/y
const escape = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y

function endOfString(text: string, start: number): number | undefined {
  for (let at = start + 1; ; at = escape.lastIndex) {
    plain.lastIndex = at
    plain.test(text)
    const end = plain.lastIndex
    if (text[end] === '"') return end + 1
    escape.lastIndex = end
    if (!escape.test(text)) return undefined
  }
}

function endOfNumber(text: string, start: number): number | undefined {
  const whole = text[start] === '-' ? start + 1 : start
  let end = endOfDigits(text, whole)
  if (end === whole || (text[whole] === '0' && end > whole + 1)) return undefined
  if (text[end] === '.') {
    const fraction = end + 1
    end = endOfDigits(text, fraction)
    if (end === fraction) return undefined
  }
  if (text[end] === 'e' || text[end] === 'E') {
    const exponent = text[end + 1] === '+' || text[end + 1] === '-' ? end + 2 : end + 1
    end = endOfDigits(text, exponent)
    if (end === exponent) return undefined
  }
  return end
}

function endOfDigits(text: string, from: number): number {
  let at = from
  for (let code = text.charCodeAt(at); code >= 0x30 && code <= 0x39; code = text.charCodeAt(at)) at++
  return at
}

function decoded(text: string, start: number, end: number): string {
  const written = text.slice(start, end)
  // Checked by endOfString to be a JSON string.
  return written.includes('\\') ? (JSON.parse(written) as string) : written.slice(1, -1)
}

/** ±0.digits × 10^exponent; no digits at all is zero. */
type Decimal = {readonly isNegative: boolean; readonly digits: string; readonly exponent: bigint}

function decimalOf(written: string): Decimal | undefined {
  if (numberWords.has(written)) return undefined
  const isNegative = written.startsWith('-')
  const [mantissa = '', power = '0'] = (isNegative ? written.slice(1) : written).toLowerCase().split('e')
  const [whole = '', fraction = ''] = mantissa.split('.')
  const all = whole + fraction
  let first = 0
  while (all[first] === '0') first++
  let last = all.length
  while (last > first && all[last - 1] === '0') last--
  const digits = all.slice(first, last)
  if (digits === '') return {isNegative: false, digits, exponent: 0n}
  return {isNegative, digits, exponent: BigInt(power) + BigInt(whole.length - first)}
}

function scalarText(node: JsonNode): string {
  if (node.kind === 'string') return JSON.stringify(stringOf(node))
  return node.kind === 'number' ? canonicalNumber(textOf(node)) : textOf(node)
}

function canonicalNumber(written: string): string {
  const decimal = decimalOf(written)
  return decimal ? `${decimal.isNegative ? '-' : ''}.${decimal.digits}e${decimal.exponent}` : written
}

function compareDecimals(one: Decimal, other: Decimal): number {
  const [a, b] = [one, other].map(signOf) as [number, number]
  if (a !== b || a === 0) return a - b
  if (one.exponent !== other.exponent) return one.exponent > other.exponent ? a : -a
  return one.digits === other.digits ? 0 : one.digits > other.digits ? a : -a
}

function signOf({isNegative, digits}: Decimal): number {
  return digits === '' ? 0 : isNegative ? -1 : 1
}
