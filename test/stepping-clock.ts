// Loaded first into a node: its wall clock jumps by an hour, now ahead and now back, several times a second.

const real = Date.now.bind(Date)
let step = 0
setInterval(() => {
  step = -step || 3_600_000
}, 300).unref()
Date.now = () => real() + step
