import type {FieldRuling} from './conflict.ts'
import {
  canonicalJson,
  compareJson,
  isNull,
  isSame,
  membersByName,
  nodeAt,
  parseJson,
  textOf,
  type JsonMember,
  type JsonNode,
} from './json-text.ts'
import {
  deeperRules,
  inner,
  ownRule,
  sideOf,
  unites,
  type Field,
  type MergeRule,
  type Scene,
} from './merge-field.ts'

// Merges two JSON documents by splicing: the source's text is the trunk, what the target adds goes in with the text it
// has there, and whatever nobody changed keeps every byte.

/** A merged value. `from` says whose value it is, whatever its spelling. */
export type MergedJson = {readonly text: string; readonly from: FieldRuling['from'] | 'same'}

/**
 * Merges two values that stand in the same place.
 *
 * @param base what stood there in the last common state, where that is known.
 */
export function mergeJson(
  source: JsonNode,
  target: JsonNode,
  base: JsonNode | undefined,
  field: Field,
  scene: Scene,
): MergedJson {
  if (isSame(source, target)) return {text: textOf(source), from: 'same'}
  const own = ownRule(field)
  if (own?.rule === 'max' || own?.rule === 'min') return extreme(source, target, own.rule, field, scene)
  const isSided = own?.rule === 'source_wins' || own?.rule === 'target_wins'
  if (base && !isSided) {
    if (isSame(source, base)) return taken(target, 'target', 'only the target has changed it', field, scene)
    if (isSame(target, base)) return taken(source, 'source', 'only the source has changed it', field, scene)
  }
  if (unites(field) && isNull(source))
    return taken(target, 'target', 'the source has nothing there', field, scene)
  if (unites(field) && isNull(target))
    return taken(source, 'source', 'the target has nothing there', field, scene)
  const areObjects = source.kind === 'object' && target.kind === 'object'
  const areArrays = source.kind === 'array' && target.kind === 'array'
  if (own?.rule === 'append' && areArrays) return appendItems(source, target, field, scene)
  if (own?.rule === 'union' && areArrays) return uniteItems(source, target, base, own, field, scene)
  if (own?.rule === 'union' && areObjects) return mergeMembers(source, target, base, field, scene)
  if (areObjects && (deeperRules(field).length > 0 || field.isInUnion)) {
    return mergeMembers(source, target, base, field, scene)
  }
  const {side, reason} = sideOf(field, scene)
  return taken(side === 'source' ? source : target, side, reason, field, scene)
}

/**
 * Puts references right that a merge may have left without what they refer to, such as a chat's current message.
 *
 * @param rules those of the column that have `memberOf`.
 * @param candidates the documents that were merged, whose own reference is tried in this order.
 */
export function mendReferences(
  text: string,
  column: string,
  rules: readonly MergeRule[],
  candidates: readonly JsonNode[],
): string {
  let mended = text
  for (const {path, memberOf} of rules) {
    const root = memberOf && parseJson(mended)
    const reference = root && nodeAt(root, path.slice(1))
    if (!reference || memberOf[0] !== column || isNull(reference)) continue
    const known = referables(nodeAt(root, memberOf.slice(1)))
    if (known.has(canonicalJson(reference))) continue
    const others = candidates.map(document => nodeAt(document, path.slice(1))).filter(node => !!node)
    const better = others.find(node => known.has(canonicalJson(node)))
    const replacement = better ? textOf(better) : ([...known].at(-1) ?? 'null')
    mended = mended.slice(0, reference.start) + replacement + mended.slice(reference.end)
  }
  return mended
}

/** What a reference may say, each as its canonical JSON, which is valid JSON for a string. */
function referables(holder: JsonNode | undefined): Set<string> {
  if (holder?.kind === 'object')
    return new Set([...membersByName(holder).keys()].map(name => JSON.stringify(name)))
  const ids = (holder?.items ?? []).map(item => nodeAt(item, ['id']) ?? item)
  return new Set(ids.filter(({kind}) => kind === 'string').map(canonicalJson))
}

function taken(
  node: JsonNode,
  from: 'source' | 'target',
  reason: string,
  field: Field,
  {note}: Scene,
): MergedJson {
  if (!field.isQuiet) note(field, from, reason)
  return {text: textOf(node), from}
}

function extreme(
  source: JsonNode,
  target: JsonNode,
  which: 'max' | 'min',
  field: Field,
  scene: Scene,
): MergedJson {
  const nothing = 'the other side has nothing there'
  if (isNull(source)) return taken(target, 'target', nothing, field, scene)
  if (isNull(target)) return taken(source, 'source', nothing, field, scene)
  const order = compareJson(source, target)
  if (order === undefined) {
    const {side, reason} = sideOf(field, scene)
    return taken(side === 'source' ? source : target, side, `no ${which} of these: ${reason}`, field, scene)
  }
  const isSource = which === 'max' ? order >= 0 : order <= 0
  return taken(isSource ? source : target, isSource ? 'source' : 'target', which, field, scene)
}

function mergeMembers(
  source: JsonNode,
  target: JsonNode,
  base: JsonNode | undefined,
  field: Field,
  scene: Scene,
): MergedJson {
  const isUnion = ownRule(field)?.rule === 'union'
  const ours = membersByName(source)
  const theirs = membersByName(target)
  const bases = base && membersByName(base)
  const tally = new Tally()
  /** What becomes of each of the source's members: its new text, or `undefined` when it goes. */
  const kept = new Map<string, string | undefined>()
  const added = new Map<string, string>()
  const otherTexts = memberTexts(target)
  const separator = separatorOf(target)
  for (const name of new Set([...ours.keys(), ...theirs.keys()])) {
    const [mine, other, before] = [ours, theirs, bases].map(members => members?.get(name)?.value)
    const place = inner(field, name, isUnion)
    if (mine && other) {
      const merged = mergeJson(mine, other, before, place, scene)
      tally.add(merged.from, merged.text === textOf(other))
      kept.set(name, merged.text)
    } else if (mine) {
      const stays = isKeptAlone('source', mine, isUnion ? undefined : before, place)
      tally.addLone('source', stays)
      if (!stays) kept.set(name, undefined)
    } else if (other && isKeptAlone('target', other, isUnion ? undefined : before, place)) {
      tally.addLone('target', true)
      added.set(name, (otherTexts.get(name) ?? []).join(separator))
    } else {
      tally.addLone('target', false)
    }
  }
  const from = tally.from()
  if (isUnion && !field.isQuiet) scene.note(field, from, tally.told())
  if (from === 'source') return {text: textOf(source), from}
  if (from === 'target' && tally.isSpelledAsTarget) return {text: textOf(target), from}
  const order = interleave([...ours.keys()], [...theirs.keys()])
  return {text: spliceMembers(source, target, {kept, added, order}), from}
}

/** Whether a member stays that only one side has. `before`: what it was in the last common state. */
function isKeptAlone(
  side: 'source' | 'target',
  present: JsonNode,
  before: JsonNode | undefined,
  place: Field,
): boolean {
  if (place.isInUnion || unites(place)) return true
  const rule = ownRule(place)?.rule ?? place.fallback
  if (rule === 'source_wins' || rule === 'target_wins') return rule.startsWith(side)
  return before === undefined || !isSame(before, present)
}

function uniteItems(
  source: JsonNode,
  target: JsonNode,
  base: JsonNode | undefined,
  {key}: MergeRule,
  field: Field,
  scene: Scene,
): MergedJson {
  const ours = itemsById(source, key)
  const theirs = itemsById(target, key)
  const bases = base?.kind === 'array' ? itemsById(base, key) : undefined
  const tally = new Tally()
  const texts = new Map<string, string>()
  for (const [id, mine] of ours) {
    const other = theirs.get(id)
    if (!other) {
      tally.addLone('source', true)
      continue
    }
    const merged = mergeJson(mine, other, bases?.get(id), inner(field, id, true), scene)
    tally.add(merged.from, merged.text === textOf(other))
    texts.set(id, merged.text)
  }
  const added = new Map<string, string>()
  for (const [id, other] of theirs) {
    if (ours.has(id)) continue
    tally.addLone('target', true)
    added.set(id, textOf(other))
  }
  const order = interleave([...ours.keys()], [...theirs.keys()])
  const isTargetsOrder = isEqualList(order, [...theirs.keys()]) && theirs.size === target.items.length
  const from = tally.from(isTargetsOrder)
  if (!field.isQuiet) scene.note(field, from, tally.told())
  if (from === 'source') return {text: textOf(source), from}
  if (from === 'target' && tally.isSpelledAsTarget) return {text: textOf(target), from}
  const idOf = new Map([...ours].map(([id, item]) => [item, id]))
  const pieces = source.items.map((item, i): Piece => {
    const id = idOf.get(item)
    return {text: (id === undefined ? undefined : texts.get(id)) ?? textOf(item), index: i, name: id}
  })
  return {text: spliced(source, target, withAdded(pieces, added, order)), from}
}

/** The items by what tells them apart: the member `key`, or all they say. Of several alike the first counts. */
function itemsById(list: JsonNode, key: string | undefined): Map<string, JsonNode> {
  const found = new Map<string, JsonNode>()
  for (const item of list.items) {
    const member = key === undefined ? undefined : nodeAt(item, [key])
    const id = member ? `key ${canonicalJson(member)}` : canonicalJson(item)
    if (!found.has(id)) found.set(id, item)
  }
  return found
}

/** The source's items, then those of the target's that the source has not, or not as often. */
function appendItems(source: JsonNode, target: JsonNode, field: Field, {note}: Scene): MergedJson {
  const added = surplus(source.items.map(canonicalJson), target.items.map(canonicalJson))
  if (added.length === 0) {
    if (!field.isQuiet) note(field, 'source', 'append: the target has nothing more')
    return {text: textOf(source), from: 'source'}
  }
  const pieces = source.items.map((item, index): Piece => ({text: textOf(item), index}))
  for (const i of added) pieces.push({text: textOf(target.items[i] as JsonNode)})
  const isTarget = isEqualList(
    target.items.map(textOf),
    pieces.map(({text}) => text),
  )
  const from = isTarget ? 'target' : 'both'
  if (!field.isQuiet) note(field, from, `append: ${added.length} from the target`)
  return {text: isTarget ? textOf(target) : spliced(source, target, pieces), from}
}

/** @returns the places in `theirs` of what `ours` has not, or not as often. */
export function surplus(ours: readonly string[], theirs: readonly string[]): number[] {
  const counts = new Map<string, number>()
  for (const item of ours) counts.set(item, (counts.get(item) ?? 0) + 1)
  return [...theirs.keys()].filter(i => {
    const item = theirs[i] as string
    const left = counts.get(item) ?? 0
    counts.set(item, left - 1)
    return left <= 0
  })
}

/**
 * The order of a union: `ours`, with what only `theirs` has after what stands before it there, and after what only
 * `ours` has in the same place. Doing it again with either changes nothing.
 */
export function interleave(ours: readonly string[], theirs: readonly string[]): string[] {
  const known = new Set(ours)
  const shared = new Set(theirs)
  const following = new Map<string | undefined, string[]>()
  let anchor: string | undefined
  for (const name of theirs) {
    if (known.has(name)) anchor = name
    else addTo(following, anchor, name)
  }
  const order: string[] = []
  let waiting = following.get(undefined) ?? []
  for (const name of ours) {
    if (shared.has(name)) {
      for (const added of waiting) order.push(added)
      waiting = following.get(name) ?? []
    }
    order.push(name)
  }
  for (const added of waiting) order.push(added)
  return order
}

/** Counts what a merge of two containers took from where. */
class Tally {
  readonly #counts = {same: 0, source: 0, target: 0, both: 0}
  readonly #lone = {source: 0, target: 0}
  /** False when a value that is the target's is spelled otherwise. */
  isSpelledAsTarget = true

  add(from: MergedJson['from'], isSpelledAsTarget: boolean): void {
    this.#counts[from]++
    this.isSpelledAsTarget &&= isSpelledAsTarget
  }

  /** Something only one side has. That it goes is the other side's doing. */
  addLone(side: 'source' | 'target', stays: boolean): void {
    this.#lone[side]++
    this.#counts[stays ? side : side === 'source' ? 'target' : 'source']++
  }

  from(isTargetsOrder = true): FieldRuling['from'] {
    const {source, target, both} = this.#counts
    if (target + both === 0) return 'source'
    return source + both === 0 && isTargetsOrder ? 'target' : 'both'
  }

  told(): string {
    const {same, source, target, both} = this.#counts
    const lone = this.#lone
    const differing = source + target + both - lone.source - lone.target
    const parts = [
      `${lone.source} only in the source`,
      `${lone.target} only in the target`,
      `${differing} that differ`,
      `${same} alike`,
    ]
    return `union: ${parts.join(', ')}`
  }
}

/** What a container is put together from. `index`: its place among the source's members or items. */
type Piece = {readonly text: string; readonly index?: number; readonly name?: string | undefined}

type Splice = {
  readonly kept: ReadonlyMap<string, string | undefined>
  readonly added: ReadonlyMap<string, string>
  readonly order: readonly string[]
}

function spliceMembers(source: JsonNode, target: JsonNode, {kept, added, order}: Splice): string {
  const effective = membersByName(source)
  const seen = new Set<string>()
  const pieces: Piece[] = []
  for (const [index, member] of source.members.entries()) {
    const {name, start, value} = member
    if (kept.has(name) && kept.get(name) === undefined) continue
    // Of several members with one name the last is what readers see; the others stay as they are.
    const text = effective.get(name) === member ? (kept.get(name) ?? textOf(value)) : textOf(value)
    const isFirst = !seen.has(name)
    seen.add(name)
    pieces.push({
      text: source.text.slice(start, value.start) + text,
      index,
      name: isFirst ? name : undefined,
    })
  }
  return spliced(source, target, withAdded(pieces, added, order))
}

function withAdded(
  pieces: readonly Piece[],
  added: ReadonlyMap<string, string>,
  order: readonly string[],
): Piece[] {
  const following = new Map<string | undefined, Piece[]>()
  const present = new Set(pieces.map(({name}) => name))
  let anchor: string | undefined
  for (const name of order) {
    const text = added.get(name)
    if (present.has(name)) anchor = name
    else if (text !== undefined) addTo<string | undefined, Piece>(following, anchor, {text})
  }
  return [
    ...(following.get(undefined) ?? []),
    ...pieces.flatMap(piece =>
      piece.name === undefined ? [piece] : [piece, ...(following.get(piece.name) ?? [])],
    ),
  ]
}

/** The source's container with other contents, in the source's manner of separating them. */
function spliced(source: JsonNode, target: JsonNode, pieces: readonly Piece[]): string {
  const spans = spansOf(source)
  const gap = (i: number) => source.text.slice(spans[i]?.end, spans[i + 1]?.start)
  const separator = spans.length > 1 ? gap(0) : separatorOf(target)
  const first = spans[0]
  const last = spans.at(-1)
  let text = source.text.slice(source.start, first ? first.start : source.start + 1)
  for (const [i, piece] of pieces.entries()) {
    const before = pieces[i - 1]?.index
    if (i > 0) {
      const isNeighbour = before !== undefined && piece.index === before + 1
      text += isNeighbour ? gap(before) : separator
    }
    text += piece.text
  }
  return text + source.text.slice(last ? last.end : source.end - 1, source.end)
}

function separatorOf(node: JsonNode): string {
  const parts = node.kind === 'array' ? node.items.slice(0, 2) : node.members.slice(0, 2)
  const [first, second] = parts.map(spanOf)
  return first && second ? node.text.slice(first.end, second.start) : ', '
}

type Span = {readonly start: number; readonly end: number}

function spansOf(node: JsonNode): Span[] {
  return node.kind === 'array' ? node.items.map(spanOf) : node.members.map(spanOf)
}

function spanOf(part: JsonNode | JsonMember): Span {
  return {start: part.start, end: 'value' in part ? part.value.end : part.end}
}

/** The members by name, as the text has them: a name that stands there twice has two. */
function memberTexts(node: JsonNode): Map<string, string[]> {
  const texts = new Map<string, string[]>()
  for (const {name, start, value} of node.members) addTo(texts, name, node.text.slice(start, value.end))
  return texts
}

function addTo<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key)
  if (list) list.push(value)
  else lists.set(key, [value])
}

function isEqualList(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((item, i) => item === other[i])
}
