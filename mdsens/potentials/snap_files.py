from mdsens.potentials.files import read_text
def read_snap(c, p, elements):
    words=[l.split('#')[0].split() for l in read_text(c).splitlines()]
    words=[w for w in words if w]
    n,m=map(int,words[0]); at=1
    co,we,ra={}, {}, []
    for _ in range(n):
        e,r,w=words[at]; co[e]=[float(x[0]) for x in words[at+1:at+1+m]]; we[e]=float(w); ra.append((e,float(r))); at+=1+m
    d={}
    for l in read_text(p).splitlines():
        q=l.split('#')[0].split()
        if q: d[q[0]]=float(q[1])
    d={k:(bool(v) if 'flag' in k else int(v) if k=='twojmax' else v) for k,v in d.items()}
    return dict(coefficients=co,weights=we,radii=tuple(ra),**d)
