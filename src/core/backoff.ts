/**
 * How long to wait before the next try, in milliseconds: twice as long after each failure, up to `mostMs`, and each time
 * somewhat more or less, so that those who failed together do not come back together.
 *
 * @param failures how often it has failed in a row, from 1 on.
 * @param random between 0 and 1.
 */
export function backoffMs(
  failures: number,
  {firstMs, mostMs}: {readonly firstMs: number; readonly mostMs: number},
  random = Math.random(),
): number {
  const ms = Math.min(firstMs * 2 ** Math.min(failures - 1, 40), mostMs)
  return Math.round(ms * (0.75 + random / 2))
}
