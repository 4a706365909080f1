/** A stream of chance that a seed repeats exactly, on every machine. */
export type Random = {
  /** @returns a number in [0, 1). */
  readonly next: () => number
  /** @returns a whole number in [0, limit). */
  readonly below: (limit: number) => number
  readonly chance: (probability: number) => boolean
  /** @throws Error when `list` is empty. */
  readonly pick: <T>(list: readonly T[]) => T
  /** @returns a version-4 UUID. */
  readonly uuid: () => string
  /** @returns a log-normal number whose mean is `mean`: many small, a few much larger. */
  readonly logNormal: (mean: number, sigma: number) => number
}

const hexOfByte = Array.from({length: 256}, (_, byte) => byte.toString(16).padStart(2, '0'))

/** The generator sfc32, warmed up so that neighbouring seeds share nothing. */
export function random(seed: number): Random {
  let a = seed | 0
  let b = Math.trunc(seed / 2 ** 32) | 0
  let c = 0x9e3779b9 | 0
  let counter = 1

  const word = () => {
    const sum = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = (((c << 21) | (c >>> 11)) + sum) | 0
    return sum >>> 0
  }
  for (let i = 0; i < 16; i++) word()

  const next = () => word() / 2 ** 32
  const below = (limit: number) => Math.floor(next() * limit)
  const hex4 = (bits: number) => `${hexOf(bits >>> 8)}${hexOf(bits)}`

  return {
    next,
    below,
    chance: probability => next() < probability,
    pick: list => {
      if (list.length === 0) throw new Error('nothing to pick from')
      return list[below(list.length)] as (typeof list)[number]
    },
    uuid: () => {
      const [w, x, y, z] = [word(), word(), word(), word()]
      const version = 0x4000 | (x & 0xfff)
      const variant = 0x8000 | (y & 0x3fff)
      return `${hex4(w >>> 16)}${hex4(w)}-${hex4(x >>> 16)}-${hex4(version)}-${hex4(variant)}-${hex4(y >>> 16)}${hex4(z >>> 16)}${hex4(z)}`
    },
    logNormal: (mean, sigma) => {
      const gauss = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
      return mean * Math.exp(sigma * gauss - (sigma * sigma) / 2)
    },
  }
}

function hexOf(bits: number): string {
  return hexOfByte[bits & 0xff] as string
}
