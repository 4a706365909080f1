/**
 * An order-free summary of the digests of many rows: how many fall into each bucket, and their sum. Equal rows do not
 * cancel each other out, as they would in an exclusive or. target/digest-sums.ts computes the same in SQL.
 */
export class DigestSums {
  /** One less than the number of buckets, which is a power of two. */
  readonly mask: number
  readonly counts: Float64Array
  /** Of the digests' first eight bytes, modulo 2^64. */
  readonly sums: BigInt64Array

  constructor(buckets = 1) {
    this.mask = buckets - 1
    this.counts = new Float64Array(buckets)
    this.sums = new BigInt64Array(buckets)
  }

  /** @param digest a `Buffer`, of which the first eight bytes count. */
  add(digest: Buffer): void {
    const bucket = this.bucketOf(digest)
    this.counts[bucket] = (this.counts[bucket] as number) + 1
    this.sums[bucket] = (this.sums[bucket] as bigint) + digest.readBigInt64BE()
  }

  /** Adds what was summed elsewhere. */
  addSum(bucket: number, count: number, sum: bigint): void {
    this.counts[bucket] = (this.counts[bucket] as number) + count
    this.sums[bucket] = (this.sums[bucket] as bigint) + sum
  }

  bucketOf(digest: Buffer): number {
    return digest.readUInt32BE(4) & this.mask
  }

  get rows(): number {
    return this.counts.reduce((total, count) => total + count, 0)
  }

  /** @returns the buckets in which the two differ. */
  differing(other: DigestSums): number[] {
    return [...this.counts.keys()].filter(
      bucket => this.counts[bucket] !== other.counts[bucket] || this.sums[bucket] !== other.sums[bucket],
    )
  }
}
