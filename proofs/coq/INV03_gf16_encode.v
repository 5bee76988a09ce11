(** INV-3, the codec: for every rational below OVERFLOW, decoding what `encode` gives is rounding in the format of
    Flocq, to nearest, ties to even; from OVERFLOW on the code is that of infinity; every number of the format up to the
    largest has a code; codes of numbers that are not negative rise with them; and decoding is undone by encoding. *)
(* uses: Flocq *)

Require Import Reals Lra Lia ZArith QArith Qabs Qreals.
From Flocq Require Import Core.
From Karat Require Import INV03_gf16_safe_domain.
Local Open Scope R_scope.

Local Notation two := (bpow radix2).

Lemma nearest_monotone (x y : R) : x <= y -> (ZnearestE x <= ZnearestE y)%Z.
Proof. apply Zrnd_le, valid_rnd_N. Qed.

Lemma nearest_integer (n : Z) : ZnearestE (IZR n) = n.
Proof. apply Zrnd_IZR, valid_rnd_N. Qed.

(** The exponent, units and code without sign that `encode` goes through. *)
Definition exponent_in (q : Q) : Z := Z.max (-30) (floor_log2 (Qabs q)).
Definition units_in (q : Q) : Z := nearest_even (Qabs q * two_to (9 - exponent_in q)).
Definition code_in (q : Q) : Z := (units_in q + 512 * (exponent_in q + 30))%Z.

Lemma encode_is (q : Q) :
  encode q = Z.lor (if Qle_bool 0 q then 0 else 32768) (Z.min (code_in q) infinity_code).
Proof.
  unfold encode, code_in, units_in, exponent_in. rewrite Z.shiftl_mul_pow2 by lia.
  change (2 ^ 9)%Z with 512%Z. rewrite (Z.mul_comm _ 512). reflexivity.
Qed.

Lemma or_sign (c : Z) : (0 <= c < 32768)%Z -> Z.lor 32768 c = (32768 + c)%Z.
Proof.
  intro H. assert (L : Z.land 32768 c = 0%Z).
  { apply Z.bits_inj'. intros n Hn. rewrite Z.land_spec, Z.bits_0. change 32768%Z with (2 ^ 15)%Z.
    rewrite Z.pow2_bits_eqb by lia. destruct (Z.eqb_spec 15 n) as [<-|]; [|reflexivity]. rewrite Bool.andb_true_l.
    destruct (Z.eq_dec c 0) as [->|N]; [reflexivity|]. apply Z.bits_above_log2; [lia|].
    apply Z.log2_lt_pow2; [lia | exact (proj2 H)]. }
  rewrite <- Z.lxor_lor by exact L. symmetry. apply Z.add_nocarry_lxor. exact L.
Qed.

Lemma abs_numerator (q : Q) : (0 <= Qnum (Qabs q))%Z.
Proof. destruct q. simpl. lia. Qed.

Lemma Qabs_positive (q : Q) : 0 <= Q2R (Qabs q).
Proof. rewrite Q2R_Qabs. apply Rabs_pos. Qed.

Lemma binade (q : Q) : (-30 <= exponent_in q)%Z /\ Q2R (Qabs q) < two (exponent_in q + 1) /\
  (two (exponent_in q) <= Q2R (Qabs q) \/ exponent_in q = (-30)%Z).
Proof.
  unfold exponent_in. destruct (floor_log2_spec (Qabs q) (abs_numerator q)) as [A B].
  split; [lia|]. split.
  - eapply Rlt_le_trans; [exact A|]. apply bpow_le. lia.
  - destruct (Z.max_spec (-30) (floor_log2 (Qabs q))) as [[L ->]|[L ->]]; [left; apply B; lia | right; reflexivity].
Qed.

Lemma units_is (q : Q) : units_in q = ZnearestE (Q2R (Qabs q) * two (9 - exponent_in q)).
Proof. unfold units_in. rewrite nearest_even_is, Q2R_mult, Q2R_two_to. reflexivity. Qed.

Lemma scaled_bounds (q : Q) : let y := Q2R (Qabs q) * two (9 - exponent_in q) in
  0 <= y < 1024 /\ (512 <= y \/ exponent_in q = (-30)%Z).
Proof.
  destruct (binade q) as (_ & A & B). cbv zeta. set (e := exponent_in q) in *.
  pose proof (bpow_gt_0 radix2 (9 - e)) as P. pose proof (Qabs_positive q) as Q.
  split; [split; [apply Rmult_le_pos; lra|]|].
  - replace 1024 with (two (e + 1) * two (9 - e)); [apply Rmult_lt_compat_r; assumption|].
    rewrite <- bpow_plus. replace (e + 1 + (9 - e))%Z with 10%Z by ring. reflexivity.
  - destruct B as [B|B]; [left|right; exact B]. replace 512 with (two e * two (9 - e)).
    + apply Rmult_le_compat_r; lra.
    + rewrite <- bpow_plus. replace (e + (9 - e))%Z with 9%Z by ring. reflexivity.
Qed.

Lemma units_bounds (q : Q) : (0 <= units_in q <= 1024)%Z /\ ((512 <= units_in q)%Z \/ exponent_in q = (-30)%Z).
Proof.
  rewrite units_is. destruct (scaled_bounds q) as [[A B] C]. set (y := Q2R (Qabs q) * two (9 - exponent_in q)) in *.
  split; [split|].
  - rewrite <- (nearest_integer 0). apply nearest_monotone. exact A.
  - rewrite <- (nearest_integer 1024). apply nearest_monotone. lra.
  - destruct C as [C|C]; [left|right; exact C]. rewrite <- (nearest_integer 512). apply nearest_monotone. exact C.
Qed.

Lemma rounded_units (q : Q) : rounded (Q2R (Qabs q)) = IZR (units_in q) * two (exponent_in q - 9).
Proof.
  destruct (binade q) as (A & B & C). rewrite units_is. pose proof (Qabs_positive q).
  apply rounded_binade; rewrite ?Rabs_right by (apply Rle_ge; assumption); assumption.
Qed.

(** A code with units and exponent is the number units · 2^(exponent - 9), carries into the next binade included. *)
Lemma decode_units (u e : Z) : (0 <= u <= 1024)%Z -> (-30 <= e)%Z -> (512 <= u \/ e = -30)%Z ->
  (u + 512 * (e + 30) < infinity_code)%Z -> Q2R (decode (u + 512 * (e + 30))) = IZR u * two (e - 9).
Proof.
  unfold infinity_code. intros Hu He N F. rewrite decode_value by (unfold infinity_code; lia).
  destruct (Z.ltb_spec (u + 512 * (e + 30)) 512) as [L|L].
  - assert (e = -30)%Z as -> by lia. f_equal; f_equal; lia.
  - destruct (Z.eq_dec u 1024) as [->|U].
    + replace (512 + (1024 + 512 * (e + 30)) mod 512)%Z with 512%Z by lia.
      replace (Z.max 1 ((1024 + 512 * (e + 30)) / 512) - 40)%Z with (e - 9 + 1)%Z by lia.
      rewrite bpow_plus. change (two 1) with 2. ring.
    + f_equal; f_equal; lia.
Qed.

Lemma finite_iff (q : Q) : (code_in q < infinity_code)%Z <-> Q2R (Qabs q) < overflow.
Proof.
  unfold code_in, infinity_code. destruct (binade q) as (L & A & B). destruct (units_bounds q) as [U V].
  assert (O : overflow = IZR 2047 * two (Z.of_nat 21)) by (rewrite two_pow; unfold overflow; field).
  assert (O2 : overflow < two 32) by (change 32%Z with (Z.of_nat 32); rewrite two_pow; unfold overflow; lra).
  assert (O1 : two 31 < overflow) by (change 31%Z with (Z.of_nat 31); rewrite two_pow; unfold overflow; lra).
  assert (E : exponent_in q = 31%Z -> (units_in q <= 1023)%Z <-> Q2R (Qabs q) < overflow).
  { intro E. rewrite units_is, E. change (9 - 31)%Z with (- Z.of_nat 22)%Z. rewrite two_inv.
    assert (S : Q2R (Qabs q) < overflow <-> Q2R (Qabs q) * / 2 ^ 22 < 2047 / 2) by (unfold overflow; lra).
    rewrite S. clear. set (y := Q2R (Qabs q) * / 2 ^ 22). split; intro H.
    - destruct (Rlt_or_le y (2047 / 2)) as [|G]; [assumption|]. apply nearest_monotone in G.
      replace (2047 / 2) with (Q2R (2047 # 2)) in G by (unfold Q2R; simpl; lra). rewrite <- nearest_even_is in G.
      change (nearest_even (2047 # 2)) with 1024%Z in G. lia.
    - pose proof (Znearest_half (fun n => negb (Z.even n)) y) as G. apply Z.lt_succ_r, lt_IZR. simpl.
      apply Rabs_le_inv in G. lra. }
  split; intro H.
  - destruct (Z_lt_ge_dec (exponent_in q) 31) as [G|G].
    + eapply Rlt_trans; [exact A|]. eapply Rle_lt_trans; [|exact O1]. apply bpow_le. lia.
    + assert (exponent_in q = 31)%Z by lia. apply E; [assumption | lia].
  - destruct (Z_lt_ge_dec (exponent_in q) 31) as [G|G]; [lia|].
    assert (exponent_in q = 31)%Z as E1.
    { destruct B as [B|B]; [|lia]. assert (exponent_in q < 32)%Z; [|lia]. apply (lt_bpow radix2). lra. }
    specialize (proj2 (E E1) H). lia.
Qed.

Lemma code_bounds (q : Q) : (0 <= Z.min (code_in q) infinity_code <= infinity_code)%Z.
Proof. destruct (binade q) as (L & _). destruct (units_bounds q) as [U _]. unfold code_in, infinity_code. lia. Qed.

Lemma decode_code (q : Q) : Q2R (Qabs q) < overflow -> Q2R (decode (code_in q)) = rounded (Q2R (Qabs q)).
Proof.
  intro H. apply finite_iff in H. rewrite rounded_units.
  destruct (binade q) as (L & _). destruct (units_bounds q) as [U V]. apply decode_units; assumption.
Qed.

Lemma sign_of (q : Q) : if Qle_bool 0 q then Q2R (Qabs q) = Q2R q else Q2R (Qabs q) = - Q2R q.
Proof.
  rewrite Q2R_Qabs. destruct (Qle_bool 0 q) eqn:E.
  - apply Rabs_right, Rle_ge. apply Qle_bool_iff, Qle_Rle in E. unfold Q2R at 1 in E. simpl in E. lra.
  - apply Rabs_left1. apply Rnot_lt_le. intro H. apply Bool.not_true_iff_false in E.
    apply E. apply Qle_bool_iff, Rle_Qle.
    unfold Q2R at 1. simpl. lra.
Qed.

(** For every rational below OVERFLOW the code is finite, and its number is the rational rounded in the format. *)
Theorem encode_rounds : forall q : Q, Rabs (Q2R q) < overflow ->
  finite (encode q) /\ Q2R (decode (encode q)) = rounded (Q2R q).
Proof.
  intros q H. rewrite <- Q2R_Qabs in H. pose proof (decode_code q H) as D. apply finite_iff in H.
  pose proof (code_bounds q) as C. rewrite Z.min_l in C by lia. rewrite encode_is, Z.min_l by lia.
  pose proof (sign_of q) as S. destruct (Qle_bool 0 q).
  - rewrite Z.lor_0_l, D, S. split; [left; lia | reflexivity].
  - unfold infinity_code in *. rewrite or_sign by lia.
    rewrite decode_negative, Q2R_opp, D, S by (unfold infinity_code; lia).
    rewrite odd. split; [right; unfold infinity_code; lia | lra].
Qed.

Lemma encode_rounds_satisfiable : exists q : Q, Rabs (Q2R q) < overflow.
Proof. exists (-7 # 3)%Q. unfold Q2R, overflow. simpl Qnum. simpl Qden. rewrite Rabs_left; lra. Qed.

(** From OVERFLOW on it is the code of infinity, with the sign. *)
Theorem encode_overflows : forall q : Q, overflow <= Rabs (Q2R q) ->
  encode q = if Qle_bool 0 q then infinity_code else (32768 + infinity_code)%Z.
Proof.
  intros q H. assert (N : ~ (code_in q < infinity_code)%Z) by (rewrite finite_iff, Q2R_Qabs; lra).
  rewrite encode_is, Z.min_r by lia. destruct (Qle_bool 0 q); [reflexivity | apply or_sign; unfold infinity_code; lia].
Qed.

Lemma encode_overflows_satisfiable : exists q : Q, overflow <= Rabs (Q2R q).
Proof. exists (inject_Z (2 ^ 32)). rewrite Q2R_inject. simpl IZR. rewrite Rabs_right; unfold overflow; lra. Qed.

(** So the codec errs by at most 2^-10 of a rational from the least normal number to OVERFLOW, *)
Theorem codec_relative_error : forall q : Q, / 2 ^ 30 <= Rabs (Q2R q) -> Rabs (Q2R q) < overflow ->
  Rabs (Q2R (decode (encode q)) - Q2R q) <= / 2 ^ 10 * Rabs (Q2R q).
Proof. intros q L H. rewrite (proj2 (encode_rounds q H)). apply relative_error. exact L. Qed.

Lemma codec_relative_error_satisfiable : exists q : Q, / 2 ^ 30 <= Rabs (Q2R q) /\ Rabs (Q2R q) < overflow.
Proof. exists (-7 # 3)%Q. unfold Q2R, overflow. simpl Qnum. simpl Qden. rewrite Rabs_left; lra. Qed.

(** and by at most 2^-40 below twice that number. *)
Theorem codec_absolute_error : forall q : Q, Rabs (Q2R q) < / 2 ^ 29 ->
  Rabs (Q2R (decode (encode q)) - Q2R q) <= / 2 ^ 40.
Proof.
  intros q H. rewrite (proj2 (encode_rounds q ltac:(unfold overflow; lra))). apply absolute_error. exact H.
Qed.

Lemma codec_absolute_error_satisfiable : exists q : Q, Rabs (Q2R q) < / 2 ^ 29.
Proof. exists (-1 # 1000000000)%Q. unfold Q2R. simpl Qnum. simpl Qden. rewrite Rabs_left; lra. Qed.

(** Every number of the format, up to the largest, is the value of a finite code. *)
Theorem codes_reach_all : forall x : R, gf16 x -> Rabs x <= largest ->
  exists code : Z, finite code /\ Q2R (decode code) = x.
Proof.
  intros x F H. set (m := Ztrunc (scaled_mantissa radix2 exponent_of x)). set (e := cexp radix2 exponent_of x).
  exists (encode (inject_Z m * two_to e)).
  assert (E : Q2R (inject_Z m * two_to e) = x) by (rewrite Q2R_mult, Q2R_inject, Q2R_two_to; symmetry; exact F).
  destruct (encode_rounds (inject_Z m * two_to e)) as [A B].
  - rewrite E. eapply Rle_lt_trans; [exact H|]. unfold largest, overflow. lra.
  - split; [exact A|]. rewrite B, E. apply fixed_iff_in_format. exact F.
Qed.

Lemma codes_reach_all_satisfiable : exists x : R, gf16 x /\ Rabs x <= largest.
Proof.
  exists largest. split; [apply largest_in_format|]. rewrite Rabs_right; unfold largest; lra.
Qed.

(** -- the order of codes -- *)

Lemma next_code_larger (c : Z) : (0 <= c < infinity_code - 1)%Z -> Q2R (decode c) < Q2R (decode (c + 1)).
Proof.
  unfold infinity_code. intro H. set (e := Z.max (-30) (c / 512 - 31)). set (u := (c - 512 * (e + 30))%Z).
  replace (c + 1)%Z with (u + 1 + 512 * (e + 30))%Z by (unfold u; ring).
  replace c with (u + 512 * (e + 30))%Z by (unfold u; ring).
  rewrite !decode_units by (unfold infinity_code, u, e; lia).
  apply Rmult_lt_compat_r; [apply bpow_gt_0 | apply IZR_lt; lia].
Qed.

(** Of finite codes without sign the larger has the larger value. *)
Theorem decode_rises : forall c d : Z, (0 <= c)%Z -> (c < d)%Z -> (d < infinity_code)%Z ->
  Q2R (decode c) < Q2R (decode d).
Proof.
  intros c d Hc Hcd. replace d with (c + 1 + (d - c - 1))%Z by ring. assert (H : (0 <= d - c - 1)%Z) by lia. revert H.
  generalize (d - c - 1)%Z as n. clear d Hcd.
  apply (natlike_ind (fun n => (c + 1 + n < infinity_code)%Z -> Q2R (decode c) < Q2R (decode (c + 1 + n)))).
  - intro H. rewrite Z.add_0_r in *. apply next_code_larger. lia.
  - intros n Hn IH H. apply Rlt_trans with (Q2R (decode (c + 1 + n))); [apply IH; lia|].
    replace (c + 1 + Z.succ n)%Z with (c + 1 + n + 1)%Z by ring. apply next_code_larger. lia.
Qed.

Lemma decode_rises_satisfiable : exists c d : Z, (0 <= c)%Z /\ (c < d)%Z /\ (d < infinity_code)%Z.
Proof. exists 511%Z, 512%Z. unfold infinity_code. lia. Qed.

(** Of two rationals that are not negative the larger has no smaller code, infinity's included. *)
Theorem encode_monotone : forall q r : Q, (0 <= q)%Q -> (q <= r)%Q -> (encode q <= encode r)%Z.
Proof.
  intros q r Hq Hqr. assert (Hr : (0 <= r)%Q) by (eapply Qle_trans; eassumption).
  rewrite !encode_is. apply Qle_bool_iff in Hq, Hr. pose proof (sign_of q) as Sq. pose proof (sign_of r) as Sr.
  rewrite Hq, Hr in *. rewrite !Z.lor_0_l. pose proof (code_bounds q). pose proof (code_bounds r).
  destruct (Z_lt_ge_dec (code_in r) infinity_code) as [G|G]; [|lia].
  assert (Or : Q2R (Qabs r) < overflow) by (apply finite_iff; exact G). apply Qle_Rle in Hqr.
  assert (Oq : Q2R (Qabs q) < overflow) by (rewrite Sq, Sr in *; lra).
  pose proof (decode_code q Oq) as Dq. pose proof (decode_code r Or) as Dr. apply finite_iff in Oq.
  destruct (Z_lt_ge_dec (code_in r) (code_in q)) as [B|B]; [|lia]. exfalso.
  pose proof (decode_rises (code_in r) (code_in q) ltac:(lia) B Oq) as C. rewrite Dq, Dr, Sq, Sr in C.
  pose proof (monotone _ _ Hqr). lra.
Qed.

Lemma encode_monotone_satisfiable : exists q r : Q, (0 <= q)%Q /\ (q <= r)%Q.
Proof. exists (1 # 3)%Q, (1 # 2)%Q. split; discriminate. Qed.

Lemma code_of_value (q : Q) (c : Z) : (0 <= c < infinity_code)%Z -> Q2R (Qabs q) = Q2R (decode c) -> code_in q = c.
Proof.
  intros H E. destruct (decode_in_format c (or_introl H)) as [G B]. pose proof (Qabs_positive q).
  assert (O : Q2R (Qabs q) < overflow).
  { rewrite E. eapply Rle_lt_trans; [apply Rle_abs|]. eapply Rle_lt_trans; [exact B | unfold largest, overflow; lra]. }
  pose proof (decode_code q O) as D. rewrite E, (proj1 (fixed_iff_in_format _) G) in D. apply finite_iff in O.
  pose proof (code_bounds q). destruct (Z.lt_trichotomy (code_in q) c) as [L|[L|L]]; [|exact L|].
  - pose proof (decode_rises (code_in q) c ltac:(lia) L (proj2 H)). lra.
  - pose proof (decode_rises c (code_in q) (proj1 H) L O). lra.
Qed.

(** Encoding undoes decoding, for every finite code but that of -0, whose value is 0. *)
Theorem encode_decode : forall code : Z, finite code -> code <> 32768%Z -> encode (decode code) = code.
Proof.
  assert (Z0 : Q2R (decode 0) = 0) by (unfold Q2R; simpl; ring).
  assert (P : forall code, (0 <= code < infinity_code)%Z -> 0 <= Q2R (decode code)).
  { intros code H. destruct (Z.eq_dec code 0) as [->|N]; [lra|]. rewrite <- Z0. left. apply decode_rises; lia. }
  intros code [F|F] N; rewrite encode_is; pose proof (sign_of (decode code)) as S.
  - assert (E : Q2R (Qabs (decode code)) = Q2R (decode code)).
    { rewrite Q2R_Qabs. apply Rabs_right, Rle_ge, P, F. }
    assert (B : Qle_bool 0 (decode code) = true).
    { apply Qle_bool_iff, Rle_Qle. unfold Q2R at 1. simpl. rewrite Rmult_0_l. apply P, F. }
    rewrite B, (code_of_value _ code F E), Z.min_l by lia. reflexivity.
  - set (c := (code - 32768)%Z) in *. assert (C : (0 < c < infinity_code)%Z) by lia.
    replace code with (32768 + c)%Z in * by (unfold c; ring). rewrite decode_negative in * by lia.
    assert (D : 0 < Q2R (decode c)) by (rewrite <- Z0; apply decode_rises; lia).
    assert (E : Q2R (Qabs (Qopp (decode c))) = Q2R (decode c)).
    { rewrite Q2R_Qabs, Q2R_opp, Rabs_Ropp. apply Rabs_right. lra. }
    rewrite (code_of_value _ c ltac:(lia) E), Z.min_l by lia.
    destruct (Qle_bool 0 (Qopp (decode c))); [rewrite E, Q2R_opp in S; lra|].
    apply or_sign. unfold infinity_code in C. lia.
Qed.

Lemma encode_decode_satisfiable : exists code : Z, finite code /\ code <> 32768%Z.
Proof. exists 40000%Z. split; [right; unfold infinity_code; lia | discriminate]. Qed.
