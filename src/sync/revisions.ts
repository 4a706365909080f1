/**
 * Open WebUI's Alembic revisions in the order in which releases applied them (its `migrations/versions` folder).
 * Gaps do no harm: a revision that is not listed counts as newer than what is, until a deployment has been at it.
 */
const ORDER = [
  '7e5b5dc7342b',
  'ca81bd47c050',
  'c0fbf31ca0db',
  '6a39f3d8e55c',
  '242a2047eae0',
  '1af9b942657b',
  '3ab32c4b8f59',
  'c69f45358db4',
  'c29facfe716b',
  'af906e964978',
  '4ace53fd72c8',
  '922e7a387820',
  '57c599a3cb57',
  '7826ab40b532',
  '3781e22d8b01',
  '9f0c9cd09105',
  'd31026856c01',
  '018012973d35',
  '3af16a1c9fb6',
  '38d63c18f30f',
  'a5c220713937',
  '37f288994c47',
  '2f1211949ecc',
  'b10670c03dd5',
  '90ef40d4714e',
  '3e0e00844bb0',
  '6283dc0e4d8d',
  '81cc2ce44d79',
  'c440947495f3',
  '374d2f66af06',
  '8452d01d26d7',
  'f1e2d3c4b5a6',
  'a1b2c3d4e5f6',
  'b2c3d4e5f6a7',
  '56359461a091',
  '4de81c2a3af1',
  '461111b60977',
  '3c9b0ca343fd',
  '3ff2c63645b8',
  '42e2978c7933',
  'd4c1a8e37b62',
]

export type Direction = 'forward' | 'backward' | 'same'

/**
 * Which way the app's schema went.
 *
 * @param history every revision the deployment has been at, oldest first; the last one is where it was.
 * @param now where it is; `null` when the file does not say.
 */
export function direction(history: readonly string[], now: string | null): Direction {
  const was = history.at(-1)
  if (was === undefined) return 'same'
  if (now === null) return 'backward'
  if (now === was) return 'same'
  const [a, b] = [ORDER.indexOf(was), ORDER.indexOf(now)]
  if (a >= 0 && b >= 0) return b > a ? 'forward' : 'backward'
  // Something newer than we know was there before, or the deployment has been here already.
  return b >= 0 || history.includes(now) ? 'backward' : 'forward'
}
