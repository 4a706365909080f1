import {UsageError} from '../core/errors.ts'

/** Which part of a list is wanted. */
export type Page = {
  /** At most so many. */
  readonly limit: number
  /** What the page before gave as `next`. */
  readonly cursor?: string
}

/** A place in a list of things that are ordered by an instant, in microseconds, and an id. */
export type Place = {readonly micros: string; readonly id: string}

/** Cuts what was read, one more than wanted, to a page. `next` is `null` after the last one. */
export function pageOf<R extends {readonly micros: bigint}>(
  rows: readonly R[],
  limit: number,
  idOf: (row: R) => string,
): {readonly items: R[]; readonly next: string | null} {
  const items = rows.slice(0, limit)
  const last = items.at(-1)
  return {
    items,
    next:
      rows.length > limit && last ? Buffer.from(`${last.micros} ${idOf(last)}`).toString('base64url') : null,
  }
}

/** @throws {UsageError} when `cursor` is not what a page gave. */
export function placeOf(cursor: string): Place {
  const [micros = '', id = ''] = Buffer.from(cursor, 'base64url').toString().split(' ')
  if (!/^\d{1,18}$/.test(micros) || !isUuid(id))
    throw new UsageError(
      'the cursor is not one that a page of this list has given',
      'Begin without a cursor.',
    )
  return {micros, id}
}

export function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)
}
