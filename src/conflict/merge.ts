import {canonical} from '../core/canonical.ts'
import type {Value} from '../core/value.ts'
import type {Conflict, FieldRuling, RowValues} from './conflict.ts'
import {parseJson} from './json-text.ts'
import {mendReferences, mergeJson, surplus} from './merge-json.ts'
import {deeperRules, inner, ownRule, rowField, sideOf, unites, type Field, type Scene} from './merge-field.ts'
import {newerSide} from './newest.ts'
import type {TableRule} from './rules.ts'
import type {Decision} from './strategies.ts'

/** Merges two rows field by field. A row that one side alone has is kept: an edit goes before a deletion. */
export function mergeRows(conflict: Conflict, rule: TableRule): Decision {
  const {type, columns, source, target, changed} = conflict
  if (type === 'drift' && !(source && target)) {
    return {verdict: {keep: 'target'}, reason: 'only the target has changed the row'}
  }
  if (!target) return {verdict: {keep: 'source'}, reason: 'an edit goes before a deletion'}
  if (!source) return {verdict: {keep: 'target'}, reason: 'an edit goes before a deletion'}

  const base = type === 'drift' ? source : conflict.base
  const fields: FieldRuling[] = []
  const scene: Scene = {
    newer: newerSide(conflict, rule.compareField),
    note: ({path}, from, reason) => fields.push({field: path.join('.'), from, reason}),
  }
  const row = new Map<string, Value>()
  for (const column of columns) {
    const [ours, theirs] = [source, target].map(side => side.get(column) ?? null) as [Value, Value]
    const before =
      changed?.target?.has(column) === false
        ? theirs
        : changed?.source?.has(column) === false
          ? ours
          : base && (base.get(column) ?? null)
    row.set(column, mergeValues(ours, theirs, before, inner(rowField(rule.mergeRules), column), scene))
  }
  const verdict = isEqual(row, source, columns)
    ? ({keep: 'source'} as const)
    : isEqual(row, target, columns)
      ? ({keep: 'target'} as const)
      : ({keep: 'merged', row} as const)
  return {verdict, reason: reasonOf(fields), fields}
}

/** @param before the column's value in the last common state; `undefined` where that is not known. */
function mergeValues(
  source: Value,
  target: Value,
  before: Value | undefined,
  field: Field,
  scene: Scene,
): Value {
  if (isEqualValue(source, target)) return source
  const take = (side: 'source' | 'target', reason: string): Value => {
    scene.note(field, side, reason)
    return side === 'source' ? source : target
  }
  const rule = ownRule(field)?.rule
  if (rule === 'max' || rule === 'min') {
    if (source === null || target === null)
      return take(source === null ? 'target' : 'source', 'the other side has nothing there')
    const order = compareValues(source, target)
    if (order !== undefined) return take((rule === 'max' ? order > 0 : order < 0) ? 'source' : 'target', rule)
  }
  const isSided = rule === 'source_wins' || rule === 'target_wins'
  if (before !== undefined && !isSided && rule !== 'max' && rule !== 'min') {
    if (isEqualValue(source, before)) return take('target', 'only the target has changed it')
    if (isEqualValue(target, before)) return take('source', 'only the source has changed it')
  }
  if (unites(field) && source === null) return take('target', 'the source has nothing there')
  if (unites(field) && target === null) return take('source', 'the target has nothing there')
  if (unites(field) || deeperRules(field).length > 0) {
    const merged = mergeTexts(source, target, before, field, scene)
    if (merged !== undefined) return merged
  }
  const {side, reason} = sideOf(field, scene)
  return take(side, reason)
}

/** @returns the merged text, or `undefined` when the values are not of a kind that can be merged. */
function mergeTexts(
  source: Value,
  target: Value,
  before: Value | undefined,
  field: Field,
  scene: Scene,
): string | undefined {
  if (typeof source !== 'string' || typeof target !== 'string') return undefined
  const ours = parseJson(source)
  const theirs = parseJson(target)
  if (ours && theirs) {
    const base = typeof before === 'string' ? parseJson(before) : undefined
    const {text, from} = mergeJson(ours, theirs, base, field, scene)
    // Blanks around the document belong to it.
    const whole = (part: string, {text, start, end}: typeof ours) =>
      text.slice(0, start) + part + text.slice(end)
    if (from === 'target' && text === target.slice(theirs.start, theirs.end)) return target
    const [column = ''] = field.path
    const references = deeperRules(field).filter(rule => rule.memberOf)
    const newerFirst = scene.newer.side === 'source' ? [ours, theirs] : [theirs, ours]
    const mended = from === 'both' ? mendReferences(text, column, references, newerFirst) : text
    return whole(mended, ours)
  }
  if (ownRule(field)?.rule !== 'append') return undefined
  const lines = target.split('\n')
  const added = surplus(source.split('\n'), lines).map(i => lines[i] as string)
  scene.note(field, added.length > 0 ? 'both' : 'source', `append: ${added.length} lines from the target`)
  if (added.length === 0) return source
  return source + (source === '' || source.endsWith('\n') ? '' : '\n') + added.join('\n')
}

/** @returns less than, equal to or greater than 0; `undefined` when the values have no order between them. */
function compareValues(one: Exclude<Value, null>, other: Exclude<Value, null>): number | undefined {
  if (typeof one === 'string' && typeof other === 'string')
    return Buffer.compare(Buffer.from(one), Buffer.from(other))
  const areNumbers = [one, other].every(value => typeof value === 'bigint' || typeof value === 'number')
  // JavaScript compares an integer with a float by what they are worth, exactly.
  return areNumbers ? (one < other ? -1 : one > other ? 1 : 0) : undefined
}

function reasonOf(fields: readonly FieldRuling[]): string {
  if (fields.length === 0) return 'both sides are equal'
  const told = (['source', 'target', 'both'] as const)
    .map(from => [from, fields.filter(field => field.from === from).map(({field}) => field)] as const)
    .filter(([, names]) => names.length > 0)
    .map(([from, names]) => `${names.join(', ')} from ${from === 'both' ? 'both' : `the ${from}`}`)
  return told.join('; ')
}

function isEqual(one: RowValues, other: RowValues, columns: readonly string[]): boolean {
  return columns.every(column => isEqualValue(one.get(column) ?? null, other.get(column) ?? null))
}

function isEqualValue(one: Value, other: Value): boolean {
  if (one === null || other === null) return one === other
  return one === other || canonical(one) === canonical(other)
}
